#include "select.h"

#include <algorithm>
#include <type_traits>

#include "halves.h"
#include "instructions.h"

namespace ligo {
namespace {

using namespace selection;

constexpr std::int64_t LINE_BYTES = 64;    // a cache line
constexpr std::int64_t BUFFER_LINES = 64;  // 4 KB: stays in the first-level cache
constexpr std::int64_t COLLECTED = 256;    // scattered columns at a time

using Work = void (*)(const Item&, const Tile&, bool);
#define LOOPS "select_lanes.h"
#include "each_set.h"

}  // namespace

void select(const Item* items, const Tile* tiles, std::int64_t count, bool stream, const Team& team) {
    const Work work = chosen();
    team.split(count, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) work(items[tiles[t].item], tiles[t], stream);
        fence();
    });
}

}  // namespace ligo
