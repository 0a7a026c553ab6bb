#include "server/kv/page_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace santa {

Page::~Page() { pool_->Free(id_); }

PagePool::PagePool(int32_t num_pages) : num_pages_(std::max(num_pages, 0)) {
  // Room for every page from the start: giving a page back never allocates.
  free_.reserve(num_pages_);
  held_back_.reserve(num_pages_);
  for (int32_t id = num_pages_ - 1; id >= 0; --id) free_.push_back(id);
}

absl::StatusOr<PageRef> PagePool::Allocate() {
  std::vector<PageRef> pages;
  if (absl::Status status = Allocate(1, &pages); !status.ok()) return status;
  return std::move(pages.front());
}

absl::Status PagePool::Allocate(int64_t count, std::vector<PageRef>* pages) {
  if (count <= 0) return absl::OkStatus();
  std::unique_lock<std::mutex> lock(mutex_);
  if (count > static_cast<int64_t>(free_.size())) {
    const size_t available = free_.size();
    lock.unlock();
    return absl::ResourceExhaustedError(absl::StrCat("the KV cache is full: ", count, " more pages are needed and ",
                                                     available, " of its ", num_pages_, " are free"));
  }
  for (int64_t i = 0; i < count; ++i) {
    pages->push_back(std::make_shared<const Page>(this, free_.back()));
    free_.pop_back();
  }
  return absl::OkStatus();
}

int32_t PagePool::free_pages() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int32_t>(free_.size() + held_back_.size());
}

void PagePool::Free(int32_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  (holds_ > 0 ? held_back_ : free_).push_back(id);
}

PagePool::Hold::Hold(PagePool* pool) : pool_(pool) {
  std::lock_guard<std::mutex> lock(pool_->mutex_);
  ++pool_->holds_;
}

PagePool::Hold::~Hold() {
  std::lock_guard<std::mutex> lock(pool_->mutex_);
  if (--pool_->holds_ > 0) return;
  pool_->free_.insert(pool_->free_.end(), pool_->held_back_.begin(), pool_->held_back_.end());
  pool_->held_back_.clear();
}

}  // namespace santa
