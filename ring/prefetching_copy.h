// Copies what another core or a device has just written.
//
// Its lines come one after another from that core's cache or from memory, each in the time of some hundred
// instructions: so they are asked for ahead of the copy. In pieces of fixed sizes: memcpy of a size that is known to be
// small but not how small becomes an instruction that takes longer to start than to copy so little.
#ifndef SANTA_RING_PREFETCHING_COPY_H_
#define SANTA_RING_PREFETCHING_COPY_H_

#include <cstddef>
#include <cstring>

namespace santa {

inline constexpr size_t kPrefetchAhead = 2048;  // bytes: where what follows is wanted next

// memcpy; meanwhile it asks for as many bytes, `ahead` bytes behind, which need not be anybody's memory.
inline void PrefetchingCopy(char* to, const char* from, size_t count, size_t ahead) {
  constexpr size_t kPiece = 256;
  constexpr size_t kLine = 64;
  const auto prefetch = [from, ahead](size_t at) { __builtin_prefetch(from + ahead + at); };
  size_t at = 0;
  for (; at + kPiece <= count; at += kPiece) {
    for (size_t line = 0; line < kPiece; line += kLine) prefetch(at + line);
    std::memcpy(to + at, from + at, kPiece);
  }
  for (size_t line = at; line < count; line += kLine) prefetch(line);
  for (; at + 16 <= count; at += 16) std::memcpy(to + at, from + at, 16);
  for (; at < count; ++at) to[at] = from[at];
}

}  // namespace santa

#endif  // SANTA_RING_PREFETCHING_COPY_H_
