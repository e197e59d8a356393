// ligo_fast._cpu. Tensors arrive as addresses, sizes and strides, already checked in ligo_fast/native/cpu.py
// and select.py; Reader asks torch for them. Nothing here is built against a torch version.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "cpu/blend.h"
#include "cpu/fill.h"
#include "cpu/finite.h"
#include "cpu/instructions.h"
#include "cpu/layout.h"
#include "cpu/select.h"
#include "cpu/split.h"
#include "cpu/sum.h"

namespace py = pybind11;
using ligo::Matrix;
using ligo::Stack;
using ligo::Team;
using ligo::Torch;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

template <class F>
F function(std::uintptr_t address) {
    return reinterpret_cast<F>(address);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() =
        "Mixing of layers, selection, sums of a few elements, products of bfloat16 weights and normal "
        "numbers on the CPU; tensors' layouts";
    py::class_<Stack>(m, "Stack")
        .def(py::init([](std::vector<std::uintptr_t> pointers, std::vector<std::int64_t> strides, int type) {
            return Stack{std::move(pointers), std::move(strides), ligo::selection::Type(type)};
        }));
    m.attr("STACK_FIELDS") = 3;
    py::class_<Team>(m, "Team").def(
        py::init([](int threads, std::uintptr_t parallel) { return Team{threads, parallel}; }));
    m.def("instructions", &ligo::instructions);
    m.def("use", &ligo::use);
    m.def(
        "combine",
        [](const Stack& out, std::uintptr_t matrix, const Stack& in, std::int64_t rows, std::int64_t columns,
           bool stream, const Team& team) {
            ligo::combine(out, pointer<const float>(matrix), in, rows, columns, stream, team);
        },
        py::call_guard<py::gil_scoped_release>());
    m.def(
        "pull",
        [](const Stack& mixed, std::uintptr_t transposed, const Stack& grads, const Stack& z,
           std::uintptr_t inverse, const Stack& grown, std::uintptr_t sums, std::int64_t rows,
           std::int64_t columns, const Team& team) {
            ligo::pull(mixed, pointer<const float>(transposed), grads, z, pointer<const float>(inverse),
                       grown, pointer<double>(sums), rows, columns, team);
        },
        py::call_guard<py::gil_scoped_release>());
    m.attr("ITEM_WORDS") = sizeof(ligo::selection::Item) / 8;
    m.def(
        "select",
        [](std::uintptr_t items, std::uintptr_t tiles, std::int64_t count, bool stream, const Team& team) {
            ligo::select(pointer<const ligo::selection::Item>(items),
                         pointer<const ligo::selection::Tile>(tiles), count, stream, team);
        },
        py::call_guard<py::gil_scoped_release>());
    m.attr("SUM_WORDS") = sizeof(ligo::sums::Sum) / 8;
    m.def(
        "sum",
        [](std::uintptr_t table, std::uintptr_t tiles, std::int64_t count, const Team& team) {
            ligo::sum(pointer<const ligo::sums::Sum>(table), pointer<const ligo::selection::Tile>(tiles),
                      count, team);
        },
        py::call_guard<py::gil_scoped_release>());
    m.def(
        "normals",
        [](std::uintptr_t out, std::int64_t count, std::uint64_t seed, std::uint64_t stream,
           const Team& team) { ligo::normals(pointer<float>(out), count, seed, stream, team); },
        py::call_guard<py::gil_scoped_release>());
    m.def("not_finite", [](const py::buffer& bytes, std::int64_t first, std::int64_t count, int each,
                           std::uint64_t exponent) {
        const py::buffer_info seen = bytes.request();
        if (seen.ndim != 1 || seen.itemsize != 1 || seen.strides[0] != 1 ||
            (each != 2 && each != 4 && each != 8) || first < 0 || first > seen.size || count < 0 ||
            count > (seen.size - first) / each)
            throw std::invalid_argument("these numbers are not in these bytes");
        // Python's lock is kept: waiting for it again takes longer than counting a block of a file
        return ligo::not_finite(static_cast<const char*>(seen.ptr) + first, count, each, exponent);
    });
    py::class_<Matrix>(m, "Matrix")
        .def(py::init(
            [](std::uintptr_t address, std::int64_t rows, std::int64_t columns, std::int64_t stride,
               int type) { return Matrix{address, rows, columns, stride, ligo::selection::Type(type)}; }));
    m.attr("MATRIX_FIELDS") = 5;
    m.def("has_matrix_units", &ligo::has_matrix_units);
    m.def("packed_bytes", &ligo::packed_bytes);
    m.def(
        "pack",
        [](std::uintptr_t packed, const Matrix& factor, bool left, const Team& team) {
            (left ? ligo::pack_left : ligo::pack_right)(pointer<std::uint8_t>(packed), factor, team);
        },
        py::call_guard<py::gil_scoped_release>());
    m.def(
        "left_product",
        [](const Matrix& out, std::uintptr_t factor, const Matrix& x, const Team& team) {
            ligo::left_product(out, pointer<const std::uint8_t>(factor), x, team);
        },
        py::call_guard<py::gil_scoped_release>());
    m.def(
        "right_product",
        [](const Matrix& out, const Matrix& x, std::uintptr_t rows, std::int64_t kept, std::uintptr_t columns,
           std::uintptr_t factor, const Team& team) {
            ligo::right_product(out, x, pointer<const float>(rows), kept, pointer<const float>(columns),
                                pointer<const std::uint8_t>(factor), team);
        },
        py::call_guard<py::gil_scoped_release>());
    m.attr("TORCH_FIELDS") = 8;
    py::class_<Torch>(m, "Torch")
        .def(py::init([](const py::type& type, std::size_t offset, std::uintptr_t nothing,
                         std::uintptr_t gradient, std::uintptr_t bump_version, std::uintptr_t version,
                         std::uintptr_t describe_before, std::uintptr_t describe_since) {
            return Torch{reinterpret_cast<PyTypeObject*>(type.ptr()),
                         offset,
                         pointer<void>(nothing),
                         function<decltype(Torch::gradient)>(gradient),
                         function<decltype(Torch::bump_version)>(bump_version),
                         function<decltype(Torch::version)>(version),
                         function<decltype(Torch::describe_before)>(describe_before),
                         function<decltype(Torch::describe_since)>(describe_since)};
        }))
        .def(py::init());
    m.attr("READER_METHODS") = 7;
    py::class_<ligo::Reader>(m, "Reader")
        .def(py::init<const py::capsule&, const Torch&>())
        .def_static("find", &ligo::Reader::find)
        .def_static("holds", &ligo::Reader::holds)
        .def("read", &ligo::Reader::read)
        .def("look", &ligo::Reader::look)
        .def("look_at_gradients", &ligo::Reader::look_at_gradients)
        .def("mark", &ligo::Reader::mark)
        .def("increment_version", &ligo::Reader::increment_version);
}
