#include "sum.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "halves.h"
#include "instructions.h"

namespace ligo {
namespace {

using namespace selection;
using sums::Lists;
using sums::Sum;

using Work = void (*)(const Sum&, const Tile&, std::vector<float>&);
#define LOOPS "sum_lanes.h"
#include "each_set.h"

}  // namespace

void sum(const Sum* table, const Tile* tiles, std::int64_t count, const Team& team) {
    const Work work = chosen();
    team.split(count, [&](std::int64_t first, std::int64_t last) {
        std::vector<float> buffer;
        for (std::int64_t t = first; t < last; ++t) work(table[tiles[t].item], tiles[t], buffer);
    });
}

}  // namespace ligo
