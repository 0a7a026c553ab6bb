#ifndef SANTA_SERVER_VERSION_H_
#define SANTA_SERVER_VERSION_H_

namespace santa {

inline constexpr char kServerVersion[] = "0.1.0";

}  // namespace santa

#endif  // SANTA_SERVER_VERSION_H_
