// Wakes a thread that waits for many processes: a Unix datagram socket, which whoever knows its name may ring. Nobody
// can take another one's ring away: only its owner reads it, and while it is full the owner is awake anyway.
#ifndef SANTA_RING_DOORBELL_H_
#define SANTA_RING_DOORBELL_H_

#include <string>

#include "absl/status/statusor.h"

namespace santa {

// The socket, of either end. Moves.
class Doorbell {
 public:
  // Of the one who waits. RESOURCE_EXHAUSTED: the system gives no socket.
  static absl::StatusOr<Doorbell> Open();
  // Of one who rings. FAILED_PRECONDITION: there is no such doorbell, which another machine's or container's is not.
  static absl::StatusOr<Doorbell> Find(const std::string& name);

  Doorbell() = default;
  Doorbell(Doorbell&& other) noexcept { *this = std::move(other); }
  Doorbell& operator=(Doorbell&& other) noexcept;
  ~Doorbell();

  const std::string& name() const { return name_; }  // in the abstract namespace, without its leading zero

  void Ring() const;  // of one that was found: never blocks; thread safe
  void Wait() const;  // of one that was opened: until it was rung since the last Wait returned; may return without

 private:
  int socket_ = -1;
  std::string name_;
};

}  // namespace santa

#endif  // SANTA_RING_DOORBELL_H_
