#include "kernels/cuda/emulation/ptx.h"

#include <immintrin.h>
#include <bit>

namespace santa::emulation {
namespace {

__m256 WidenHalf(__m128i bits) { return _mm256_cvtph_ps(bits); }
__m256 WidenBFloat16(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }

template <__m256 (*kWiden)(__m128i)>
void Multiply(void* const* of_lane, uint32_t mask) {
  if (mask != ~0u) Fail("a product of matrices by a part of a warp");
  alignas(32) uint16_t a[16][16], b[16][8];
  alignas(32) float wide[16][16];
  for (int lane = 0; lane < 32; ++lane) {
    const Product& brought = *static_cast<const Product*>(of_lane[lane]);
    const int r = lane / 4, c = lane % 4;
    for (int i = 0; i < 4; ++i) std::memcpy(&a[r + i % 2 * 8][2 * c + i / 2 * 8], &brought.a[i], 4);
    for (int i = 0; i < 2; ++i) {
      b[2 * c + 8 * i][r] = static_cast<uint16_t>(brought.b[i]);
      b[2 * c + 8 * i + 1][r] = static_cast<uint16_t>(brought.b[i] >> 16);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int half = 0; half < 2; ++half) {
      _mm256_store_ps(&wide[row][8 * half],
                      kWiden(_mm_load_si128(reinterpret_cast<const __m128i*>(&a[row][8 * half]))));
    }
  }
  __m256 right[16];
  for (int k = 0; k < 16; ++k) right[k] = kWiden(_mm_load_si128(reinterpret_cast<const __m128i*>(b[k])));
  alignas(32) float d[16][8];
  for (int row = 0; row < 16; row += 4) {
    __m256 sums[4] = {};
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; i < 4; ++i) sums[i] = _mm256_fmadd_ps(_mm256_set1_ps(wide[row + i][k]), right[k], sums[i]);
    }
    for (int i = 0; i < 4; ++i) _mm256_store_ps(d[row + i], sums[i]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const Product& brought = *static_cast<const Product*>(of_lane[lane]);
    for (int i = 0; i < 4; ++i) *brought.d[i] += d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

template <bool kTransposed>
void Load(void* const* of_lane, uint32_t mask) {
  if (mask != ~0u) Fail("matrices loaded by a part of a warp");
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t rows[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(rows[row], static_cast<const MatrixLoad*>(of_lane[8 * matrix + row])->row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int r = lane / 4, c = 2 * (lane % 4);
      *static_cast<const MatrixLoad*>(of_lane[lane])->to[matrix] =
          kTransposed ? rows[c][r] | static_cast<uint32_t>(rows[c + 1][r]) << 16
                      : rows[r][c] | static_cast<uint32_t>(rows[r][c + 1]) << 16;
    }
  }
}

}  // namespace

void MultiplyBFloat16(void* const* of_lane, uint32_t mask) { Multiply<WidenBFloat16>(of_lane, mask); }
void MultiplyHalf(void* const* of_lane, uint32_t mask) { Multiply<WidenHalf>(of_lane, mask); }

template <typename Right>
void MultiplyBytes(void* const* of_lane, uint32_t mask) {
  if (mask != ~0u) Fail("a product of matrices by a part of a warp");
  uint8_t a[16][32];
  Right b[8][32];  // column by column
  for (int lane = 0; lane < 32; ++lane) {
    const ByteProduct& brought = *static_cast<const ByteProduct*>(of_lane[lane]);
    const int r = lane / 4, k = 4 * (lane % 4);
    for (int i = 0; i < 4; ++i) std::memcpy(&a[r + i % 2 * 8][k + i / 2 * 16], &brought.a[i], 4);
    for (int i = 0; i < 2; ++i) std::memcpy(&b[r][k + 16 * i], &brought.b[i], 4);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const ByteProduct& brought = *static_cast<const ByteProduct*>(of_lane[lane]);
    for (int i = 0; i < 4; ++i) {
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += a[lane / 4 + i / 2 * 8][k] * b[lane % 4 * 2 + i % 2][k];
      *brought.d[i] += sum;
    }
  }
}

template void MultiplyBytes<uint8_t>(void* const* of_lane, uint32_t mask);
template void MultiplyBytes<int8_t>(void* const* of_lane, uint32_t mask);

void LoadMatrices(void* const* of_lane, uint32_t mask) { Load<false>(of_lane, mask); }
void LoadMatricesTransposed(void* const* of_lane, uint32_t mask) { Load<true>(of_lane, mask); }

void Transpose(void* const* of_lane, uint32_t mask) {
  if (mask != ~0u) Fail("a matrix transposed by a part of a warp");
  uint16_t rows[8][8];
  for (int lane = 0; lane < 32; ++lane) std::memcpy(&rows[lane / 4][2 * (lane % 4)], of_lane[lane], 4);
  for (int lane = 0; lane < 32; ++lane) {
    const int r = lane / 4, c = 2 * (lane % 4);
    *static_cast<uint32_t*>(of_lane[lane]) = rows[c][r] | static_cast<uint32_t>(rows[c + 1][r]) << 16;
  }
}

}  // namespace santa::emulation
