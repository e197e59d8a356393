// Sums of a few elements on a GPU; what they are is in ../sum.h. No CUDA header here.
#pragma once

#include <cstdint>

#include "../sum.h"

namespace ligo::cuda {

// One launch for all tiles of a table; the table and what it points to are on the device. CUDA's error code.
int sum(const sums::Sum* table, const selection::Tile* tiles, std::int64_t count, int device, void* stream);

}  // namespace ligo::cuda
