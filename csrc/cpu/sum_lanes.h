// The loops of a tile; compiled by each_set.h.

// A row of out at a time: the sums of its rows of the sources, for all of their columns, and then its
// columns.
template <class S, class D>
static void rows(const Sum& sum, const Tile& tile, std::vector<float>& buffer) {
    const Lists& columns = sum.columns;
    const std::int64_t n = columns.old, stride = columns.in_stride;
    buffer.resize(std::size_t(n));
    float* const parts = buffer.data();
    for (std::int64_t r = tile.row; r < sum.rows.end(tile.row); ++r) {
        std::fill_n(parts, n, 0.0f);
        sums::for_row<S>(sum, r, [=](float scale, const S* in) {
            if (stride == 1)
                for (std::int64_t j = 0; j < n; ++j) parts[j] = fmaf(scale, widen(in[j]), parts[j]);
            else
                for (std::int64_t j = 0; j < n; ++j) parts[j] = fmaf(scale, widen(in[j * stride]), parts[j]);
        });
        D* const out = reinterpret_cast<D*>(sum.out) + sum.out_at(r, 0);
        for (std::int64_t c = 0; c < columns.size; ++c)
            narrow(sums::for_column(sum, c, [=](std::int64_t j) { return parts[j]; }),
                   out[c * columns.out_stride]);
    }
}

template <class S>
static void rows_from(const Sum& sum, const Tile& tile, std::vector<float>& buffer) {
    if (sum.out_type == FLOAT32) return rows<S, float>(sum, tile, buffer);
    if (sum.out_type == BFLOAT16) return rows<S, BFloat16>(sum, tile, buffer);
    rows<S, Float16>(sum, tile, buffer);
}

static void work(const Sum& sum, const Tile& tile, std::vector<float>& buffer) {
    if (sum.in_type == FLOAT32) return rows_from<float>(sum, tile, buffer);
    if (sum.in_type == BFLOAT16) return rows_from<BFloat16>(sum, tile, buffer);
    rows_from<Float16>(sum, tile, buffer);
}

static const Work loops = work;
