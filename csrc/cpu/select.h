// Selection on the CPU; what it does is in ../select.h.
#pragma once

#include <cstdint>

#include "../select.h"
#include "parallel.h"

namespace ligo {

// All tiles of a table. With `stream` whole cache lines of out are stored past the cache.
void select(const selection::Item* items, const selection::Tile* tiles, std::int64_t count, bool stream,
            const Team& team);

}  // namespace ligo
