// Sums of a few elements on the CPU; what they are is in ../sum.h.
#pragma once

#include <cstdint>

#include "../sum.h"
#include "parallel.h"

namespace ligo {

// All tiles of a table; a tile has whole rows.
void sum(const sums::Sum* table, const selection::Tile* tiles, std::int64_t count, const Team& team);

}  // namespace ligo
