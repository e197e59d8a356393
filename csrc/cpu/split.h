// Products of matrices of bfloat16 with float32 factors, on the matrix units (AMX) of x86.
//
// A float32 number is the sum of two bfloat16 ones up to 2^-17 of itself, c = c_hi + c_lo. A matrix X that is
// bfloat16 then takes two products that the units sum in float32, X C = X C_hi + X C_lo; one that is float32
// takes three (lo times lo is left out). The result is as good as a float32 product's once it is rounded to
// bfloat16, and the units are six times as fast as float32 products.
//
// Operands are packed as tiles of 16 rows of 64 bytes, one panel of 16 rows of the left operand, or of 16
// columns of the right one, after the other: the factor once, X a block at a time, which then stays in a
// core's own cache. The bits of a result depend on neither the blocks nor the threads. As the units do it,
// subnormal numbers count as zero; a number that is infinite as bfloat16 gives NaN.
#pragma once

#include <cstdint>

#include "../select.h"
#include "parallel.h"

namespace ligo {

// A matrix in memory with inner stride 1.
struct Matrix {
    std::uintptr_t address = 0;
    std::int64_t rows = 0, columns = 0, stride = 0;  // stride: of a row, in elements
    selection::Type type = selection::FLOAT32;       // or BFLOAT16
};

// Whether this machine has the units, the compiler knew them and the system lets this process use them.
bool has_matrix_units();

// Bytes of a packed factor (rows, columns), 64-byte aligned memory of which the next two write.
std::int64_t packed_bytes(std::int64_t rows, std::int64_t columns);
void pack_left(std::uint8_t* packed, const Matrix& factor, const Team& team);
void pack_right(std::uint8_t* packed, const Matrix& factor, const Team& team);

// out (n, x.columns) = C x, for C (n, x.rows) packed by pack_left; out is float32.
void left_product(const Matrix& out, const std::uint8_t* factor, const Matrix& x, const Team& team);

// out (x.rows, kept + n) = diag(rows) x [diag(columns); C]^T, for C (n, x.columns) packed by pack_right.
// kept is x.columns or 0; scales are null for ones. out is bfloat16 or float32.
void right_product(const Matrix& out, const Matrix& x, const float* rows, std::int64_t kept,
                   const float* columns, const std::uint8_t* factor, const Team& team);

}  // namespace ligo
