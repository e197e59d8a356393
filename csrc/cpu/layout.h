// Where tensors lie and how, hundreds of them in one call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "../dlpack.h"
#include "borrow.h"

namespace ligo {

// What a look at tensors found, as bits; 0 when they lie otherwise. ligo_fast/native/layouts.py has the same.
enum Found : int {
    FITS = 1,
    MOVED = 2,    // an address is another one than was in its place
    TILTED = 4,   // or even lies another number of bytes beyond a multiple of 16
    GIVEN = 8,    // a tensor has a gradient
    MISSING = 16  // a tensor has none
};

class Reader {
   public:
    // `exchange` holds a dlpack::Exchange, for where nothing is known of torch itself. Throws
    // std::runtime_error for one of another version.
    Reader(const pybind11::capsule& exchange, const Torch& torch);

    // What each dict of a list has now under the key in its place, None for nothing.
    static pybind11::list find(const pybind11::list& owners, const pybind11::list& keys);

    // Whether it is the very object in its place in `values`.
    static bool holds(const pybind11::list& owners, const pybind11::list& keys, const pybind11::list& values);

    // Of tensors, None among them: their addresses, int64 one after the other, and bytes that are the same
    // when devices, dtypes, shapes and strides are. Tensors without an address lie like nothing that has one.
    pybind11::tuple read(const pybind11::sequence& tensors) const;

    // Whether they lie as `layout` says, which `read` gave for others: quicker than to read and to compare.
    // Puts their addresses into an array of int64 from `first` on, up to the first that does not. Gives bits
    // of `Found`.
    int look(const pybind11::sequence& tensors, const pybind11::bytes& layout,
             const pybind11::object& addresses, std::size_t first) const;

    // The same for the `.grad` of each. One without lies like its tensor; its address is 0.
    int look_at_gradients(const pybind11::sequence& tensors, const pybind11::bytes& layout,
                          const pybind11::object& addresses, std::size_t first) const;

    // Whether these are the very tensors that `marks` tells of, an array of two int64 for each, and none was
    // written since, as autograd counts writes; now it tells of these. A tensor that counts none has changed.
    // One that is gone might be mistaken for another in its place: keep them.
    bool mark(const pybind11::sequence& tensors, const pybind11::object& marks) const;

    // Count one more write to each tensor, as autograd counts them.
    void increment_version(const pybind11::sequence& tensors) const;

   private:
    struct Seen;

    Seen see(const TorchTensor& tensor) const;
    Seen see(PyObject* object) const;
    Seen see_gradient(PyObject* object) const;
    template <class See>
    int compare(const pybind11::sequence& tensors, const pybind11::bytes& layout,
                const pybind11::object& addresses, std::size_t first, const See& see) const;

    const dlpack::Exchange* exchange_;
    Torch torch_;
};

}  // namespace ligo
