// ligo_fast._cuda: addresses, sizes and a stream, already checked in ligo_fast/native/select.py. Links
// nothing of torch, and the CUDA runtime only statically: it loads where there is no driver, and then says
// so.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "fill.h"
#include "select.h"
#include "sum.h"

namespace py = pybind11;
using namespace ligo;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void check(int error) {
    if (error) throw std::runtime_error(std::string("CUDA: ") + cuda::message(error));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "Selection, sums of a few elements and normal numbers on CUDA devices";
    m.attr("ITEM_WORDS") = sizeof(selection::Item) / 8;
    m.attr("architectures") = LIGO_ARCHITECTURES;
    m.def("device_count", [] {
        int count = 0;
        const int error = cuda::device_count(count);
        return py::make_tuple(error, error ? cuda::message(error) : "", count);
    });
    m.def("versions", [] {
        int driver = 0, runtime = 0;
        cuda::versions(driver, runtime);
        return py::make_tuple(driver, runtime);
    });
    m.def(
        "select",
        [](std::uintptr_t items, std::uintptr_t tiles, std::int64_t count, int device,
           std::uintptr_t stream) {
            check(cuda::select(pointer<const selection::Item>(items), pointer<const selection::Tile>(tiles),
                               count, device, pointer<void>(stream)));
        },
        py::call_guard<py::gil_scoped_release>());
    m.attr("SUM_WORDS") = sizeof(sums::Sum) / 8;
    m.def(
        "sum",
        [](std::uintptr_t table, std::uintptr_t tiles, std::int64_t count, int device,
           std::uintptr_t stream) {
            check(cuda::sum(pointer<const sums::Sum>(table), pointer<const selection::Tile>(tiles), count,
                            device, pointer<void>(stream)));
        },
        py::call_guard<py::gil_scoped_release>());
    m.def(
        "normals",
        [](std::uintptr_t out, std::int64_t count, std::uint64_t seed, std::uint64_t numbers, int device,
           std::uintptr_t stream) {
            check(cuda::normals(pointer<float>(out), count, seed, numbers, device, pointer<void>(stream)));
        },
        py::call_guard<py::gil_scoped_release>());
}
