// Whose turn it is when more work waits than the device takes at once.
#ifndef SANTA_SERVER_ENGINE_FAIR_SHARE_H_
#define SANTA_SERVER_ENGINE_FAIR_SHARE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "server/engine/step.h"

namespace santa {

// Start-time fair queueing (P. Goyal, H. M. Vin and H. Cheng, 1996), counted in items, over two levels: tenants share
// the device alike, and within a tenant its clients do. Every step gets a turn among its tenant's: after its client's
// last one's items, and not before the turn that is being served. So however many steps a client has queued, another's
// waits for about one of them; and who asks for more than a share gets what the others leave. A client's steps keep
// their order.
//
// Not thread safe.
class FairShare {
 public:
  // Puts the queue into the order in which it is to be served. Its last `arrived` steps are new, in order of arrival;
  // the others stand as the last call left them, but for those that left.
  void Order(size_t arrived, std::vector<Step*>* queue);

  // The step is no longer queued.
  void Left(const Step& step);

  size_t clients() const { return size_; }  // that it keeps in mind

 private:
  struct Client {
    int64_t next_turn = 0;
    int64_t queued = 0;  // steps
  };
  struct Tenant {
    absl::flat_hash_map<uint64_t, Client> clients;  // by Step::client
    int64_t now = 0;                                // the greatest turn that was served
    int64_t furthest = 0;                           // no next_turn is past it
    int64_t queued = 0;                             // steps
    int64_t time = 0;                               // items served, and what it missed while it wanted none
    int64_t cursor = 0;                             // Interleave's
  };

  void Arrived(Step* step);
  void Interleave(std::vector<Step*>* queue);
  void Forget();

  int64_t now_ = 0;  // the greatest time at which a tenant was served
  uint64_t arrivals_ = 0;
  int64_t waiting_tenants_ = 0;
  bool by_turn_ = true;  // the queue is in order of turns: there was one tenant
  size_t size_ = 0;
  size_t forget_at_ = 64;
  absl::flat_hash_map<std::string, Tenant> tenants_;
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_FAIR_SHARE_H_
