#include "server/engine/fair_share.h"

#include <algorithm>

namespace santa {
namespace {

bool ByTurn(const Step* a, const Step* b) { return a->turn != b->turn ? a->turn < b->turn : a->arrival < b->arrival; }

bool ByTenantTurn(const Step* a, const Step* b) {
  return a->tenant_turn != b->tenant_turn ? a->tenant_turn < b->tenant_turn : ByTurn(a, b);
}

}  // namespace

void FairShare::Order(size_t arrived, std::vector<Step*>* queue) {
  const auto first_new = queue->end() - static_cast<std::ptrdiff_t>(arrived);
  for (auto step = first_new; step != queue->end(); ++step) Arrived(*step);
  const bool one_tenant = waiting_tenants_ <= 1;
  if (one_tenant && by_turn_) {
    std::sort(first_new, queue->end(), ByTurn);
    const bool merged = first_new == queue->begin() || first_new == queue->end() || ByTurn(first_new[-1], *first_new);
    if (!merged) std::inplace_merge(queue->begin(), first_new, queue->end(), ByTurn);
  } else {
    std::sort(queue->begin(), queue->end(), ByTurn);
  }
  by_turn_ = one_tenant;
  if (!one_tenant) Interleave(queue);
}

void FairShare::Arrived(Step* step) {
  Tenant& tenant = tenants_[step->tenant];
  if (tenant.queued++ == 0) {
    ++waiting_tenants_;
    tenant.time = std::max(tenant.time, now_);
  }
  const auto [place, is_new] = tenant.clients.try_emplace(step->client);
  if (is_new) ++size_;
  Client& client = place->second;
  ++client.queued;
  step->arrival = arrivals_++;
  step->turn = std::max(client.next_turn, tenant.now);
  client.next_turn = step->turn + Weight(*step);
  tenant.furthest = std::max(tenant.furthest, client.next_turn);
}

// Each tenant's steps, which are in order, one behind the other on its time; then all of them by time.
void FairShare::Interleave(std::vector<Step*>* queue) {
  for (auto& [name, tenant] : tenants_) tenant.cursor = tenant.time;
  for (Step* step : *queue) {
    Tenant& tenant = tenants_[step->tenant];
    step->tenant_turn = tenant.cursor;
    tenant.cursor += Weight(*step);
  }
  std::sort(queue->begin(), queue->end(), ByTenantTurn);
}

void FairShare::Left(const Step& step) {
  Tenant& tenant = tenants_[step.tenant];
  now_ = std::max(now_, tenant.time);
  tenant.time += Weight(step);
  tenant.now = std::max(tenant.now, step.turn);
  --tenant.clients[step.client].queued;
  if (--tenant.queued == 0) {
    --waiting_tenants_;
    tenant.now = tenant.furthest;  // nobody of it waits for anybody: all begin anew
  }
  if (size_ > forget_at_) Forget();
}

// Whoever has nothing queued is as good as new, but for the items of one step.
void FairShare::Forget() {
  size_ = 0;
  for (auto tenant = tenants_.begin(); tenant != tenants_.end();) {
    auto& clients = tenant->second.clients;
    for (auto client = clients.begin(); client != clients.end();) {
      const auto here = client++;
      if (here->second.queued == 0) clients.erase(here);
    }
    size_ += clients.size();
    const auto here = tenant++;
    if (clients.empty()) tenants_.erase(here);
  }
  forget_at_ = 64 + 2 * size_;
}

}  // namespace santa
