#include "blend.h"

#include <algorithm>

#include "halves.h"
#include "instructions.h"

namespace ligo {
namespace {

// The loops of lanes.h as one instruction set runs them.
struct Lanes {
    std::int64_t width;
    std::int64_t step;  // columns must come in multiples of it
    void (*combine)(float* const* out, int rows, const float* matrix, const float* const* in, int count,
                    std::int64_t n, bool stream);
    void (*dot)(float* sums, const float* const* a, int rows, const float* const* b, int columns,
                std::int64_t n);
    void (*narrow)(void* out, selection::Type type, const float* in, std::int64_t n);
};

#define LOOPS "lanes.h"
#include "each_set.h"

// Rows whose inner products are summed in float32, lane by lane; then in float64.
constexpr std::int64_t GROUP = 8;
// Columns at a time: a stretch of all layers fits the first-level cache.
constexpr std::int64_t STRETCH = 256;

// The rows of a stack at one place. Columns that fill no whole step are worked on in a copy padded with
// zeros.
struct Rows {
    Rows(const Stack& stack, std::int64_t step) : stack(stack), at(stack.size()), pad(stack.size() * step) {}

    float* const* whole(std::int64_t row, std::int64_t column) {
        for (std::size_t l = 0; l < at.size(); ++l) at[l] = stack.row(l, row, column);
        return at.data();
    }
    float* const* padded(std::int64_t row, std::int64_t column, std::int64_t n, std::int64_t step,
                         bool read) {
        std::fill(pad.begin(), pad.end(), 0.0f);
        for (std::size_t l = 0; l < at.size(); ++l) {
            at[l] = pad.data() + l * step;
            if (read) std::copy_n(stack.row(l, row, column), n, at[l]);
        }
        return at.data();
    }
    void write_back(std::int64_t row, std::int64_t column, std::int64_t n) {
        for (std::size_t l = 0; l < at.size(); ++l) std::copy_n(at[l], n, stack.row(l, row, column));
    }
    bool aligned(std::int64_t row) const {  // to a cache line
        for (std::size_t l = 0; l < stack.size(); ++l)
            if (reinterpret_cast<std::uintptr_t>(stack.row(l, row)) % 64) return false;
        return true;
    }

    const Stack& stack;
    std::vector<float*> at;
    std::vector<float> pad;
};

}  // namespace

void combine(const Stack& out, const float* matrix, const Stack& in, std::int64_t rows, std::int64_t columns,
             bool stream, const Team& team) {
    const Lanes& run = chosen();
    const int n_out = int(out.size()), n_in = int(in.size());
    const std::int64_t body = columns / run.step * run.step, rest = columns - body;
    team.split(rows, [&](std::int64_t first, std::int64_t last) {
        Rows to(out, run.step), from(in, run.step);
        if (out.type != selection::FLOAT32) {
            std::vector<float> sums(n_out * STRETCH);
            std::vector<float*> at(n_out);
            for (int r = 0; r < n_out; ++r) at[r] = sums.data() + r * STRETCH;
            const auto stretch = [&](std::int64_t row, std::int64_t c, float* const* x, std::int64_t n,
                                     std::int64_t wanted) {
                run.combine(at.data(), n_out, matrix, x, n_in, n, false);
                for (int r = 0; r < n_out; ++r) run.narrow(out.half(r, row, c), out.type, at[r], wanted);
            };
            for (std::int64_t row = first; row < last; ++row) {
                for (std::int64_t c = 0; c < body; c += STRETCH) {
                    const std::int64_t n = std::min(STRETCH, body - c);
                    stretch(row, c, from.whole(row, c), n, n);
                }
                if (rest) stretch(row, body, from.padded(row, body, rest, run.step, true), run.step, rest);
            }
            return;
        }
        for (std::int64_t row = first; row < last; ++row) {
            const bool past = stream && to.aligned(row);
            for (std::int64_t c = 0; c < body; c += STRETCH)
                run.combine(to.whole(row, c), n_out, matrix, from.whole(row, c), n_in,
                            std::min(STRETCH, body - c), past);
            if (!rest) continue;
            run.combine(to.padded(row, body, rest, run.step, false), n_out, matrix,
                        from.padded(row, body, rest, run.step, true), n_in, run.step, false);
            to.write_back(row, body, rest);
        }
        fence();
    });
}

void pull(const Stack& mixed, const float* transposed, const Stack& grads, const Stack& z,
          const float* inverse, const Stack& grown, double* sums, std::int64_t rows, std::int64_t columns,
          const Team& team) {
    const Lanes& run = chosen();
    const int n_mixed = int(mixed.size()), n_grads = int(grads.size()), n_z = int(z.size());
    const std::int64_t pairs = n_grads * n_z, groups = (rows + GROUP - 1) / GROUP;
    const std::int64_t body = columns / run.step * run.step, rest = columns - body;
    std::vector<double> by_group(groups * pairs);
    team.split(groups, [&](std::int64_t first, std::int64_t last) {
        Rows to(mixed, run.step), from(grads, run.step), hidden(z, run.step), known(grown, run.step);
        std::vector<float> lane_sums(pairs * run.width);
        const auto stretch = [&](float* const* m, float* const* g, float* const* h, float* const* y,
                                 std::int64_t n) {
            if (inverse) run.combine(h, n_z, inverse, y, int(grown.size()), n, false);
            if (pairs) run.dot(lane_sums.data(), g, n_grads, h, n_z, n);
            run.combine(m, n_mixed, transposed, g, n_grads, n, false);
        };
        for (std::int64_t group = first; group < last; ++group) {
            std::fill(lane_sums.begin(), lane_sums.end(), 0.0f);
            for (std::int64_t row = group * GROUP; row < std::min(rows, (group + 1) * GROUP); ++row) {
                for (std::int64_t c = 0; c < body; c += STRETCH)
                    stretch(to.whole(row, c), from.whole(row, c), hidden.whole(row, c), known.whole(row, c),
                            std::min(STRETCH, body - c));
                if (!rest) continue;
                stretch(to.padded(row, body, rest, run.step, false),
                        from.padded(row, body, rest, run.step, true),
                        hidden.padded(row, body, rest, run.step, !inverse),
                        known.padded(row, body, rest, run.step, true), run.step);
                to.write_back(row, body, rest);
                if (inverse) hidden.write_back(row, body, rest);
            }
            for (std::int64_t i = 0; i < pairs * run.width; ++i)
                by_group[group * pairs + i / run.width] += lane_sums[i];
        }
    });
    std::fill_n(sums, pairs, 0.0);
    for (std::int64_t i = 0; i < groups * pairs; ++i) sums[i % pairs] += by_group[i];
}

}  // namespace ligo
