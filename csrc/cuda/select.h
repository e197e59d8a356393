// Selection on a GPU; what it does is in ../select.h. No CUDA header here: the host's compiler reads it.
#pragma once

#include <cstdint>

#include "../select.h"

namespace ligo::cuda {

// One launch for all tiles of a table; the table and what it points to are on the device. CUDA's error code.
int select(const selection::Item* items, const selection::Tile* tiles, std::int64_t count, int device,
           void* stream);

// How many devices there are; and an error code, as where there is no driver or one that is too old.
int device_count(int& count);
const char* message(int error);
void versions(int& driver, int& runtime);

}  // namespace ligo::cuda
