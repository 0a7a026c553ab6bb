// Hands out page ids of the backend's KV cache. Owns no memory.
#ifndef SANTA_SERVER_KV_PAGE_POOL_H_
#define SANTA_SERVER_KV_PAGE_POOL_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace santa {

class PagePool;

// One page, given back to its pool when destroyed. Share it (std::shared_ptr<const Page>) to share the page.
class Page {
 public:
  Page(PagePool* pool, int32_t id) : pool_(pool), id_(id) {}
  ~Page();
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;
  int32_t id() const { return id_; }

 private:
  PagePool* pool_;
  int32_t id_;
};
using PageRef = std::shared_ptr<const Page>;

// Thread safe. Outlives its pages.
class PagePool {
 public:
  // Page ids are [0, num_pages); num_pages >= 0.
  explicit PagePool(int32_t num_pages);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // RESOURCE_EXHAUSTED, naming the pool's size, when no page is free.
  absl::StatusOr<PageRef> Allocate();

  // Adds `count` pages at the end of `pages`, or none: RESOURCE_EXHAUSTED when fewer are free.
  absl::Status Allocate(int64_t count, std::vector<PageRef>* pages);

  int32_t num_pages() const { return num_pages_; }
  int32_t free_pages() const;  // pages in the hold count as free: they are, as soon as the batch ends

  // While a Hold lives (the engine has one for each batch), pages given back are set aside rather than handed out
  // again, so that no page that the batch reads is written for another sequence.
  class Hold {
   public:
    explicit Hold(PagePool* pool);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    PagePool* pool_;
  };

 private:
  friend class Page;
  void Free(int32_t id);

  const int32_t num_pages_;
  mutable std::mutex mutex_;
  std::vector<int32_t> free_;  // the page given back last is handed out first
  std::vector<int32_t> held_back_;
  int holds_ = 0;
};

}  // namespace santa

#endif  // SANTA_SERVER_KV_PAGE_POOL_H_
