// ligo_fast._cuda: addresses, sizes and a stream, already checked in ligo_fast/select.py. Links nothing of torch,
// and the CUDA runtime only statically: it loads where there is no driver, and then says so.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "select.h"

namespace py = pybind11;
using namespace ligo;

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "Selection on CUDA devices";
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
        [](std::uintptr_t items, std::uintptr_t tiles, std::int64_t count, int device, std::uintptr_t stream) {
            const int error = cuda::select(reinterpret_cast<const selection::Item*>(items),
                                           reinterpret_cast<const selection::Tile*>(tiles), count, device,
                                           reinterpret_cast<void*>(stream));
            if (error) throw std::runtime_error(std::string("CUDA: ") + cuda::message(error));
        },
        py::call_guard<py::gil_scoped_release>());
}
