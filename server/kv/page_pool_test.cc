#include "server/kv/page_pool.h"

#include <set>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace santa {
namespace {

TEST(PagePoolTest, HandsOutEachPageOnce) {
  PagePool pool(5);
  std::set<int32_t> ids;
  std::vector<PageRef> pages;
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(pool.free_pages(), 5 - i);
    absl::StatusOr<PageRef> page = pool.Allocate();
    ASSERT_TRUE(page.ok());
    ids.insert((*page)->id());
    pages.push_back(*std::move(page));
  }
  EXPECT_EQ(ids, (std::set<int32_t>{0, 1, 2, 3, 4}));
}

TEST(PagePoolTest, FullIsAStatusThatNamesTheSize) {
  PagePool pool(1);
  const absl::StatusOr<PageRef> page = pool.Allocate();
  ASSERT_TRUE(page.ok());
  const absl::Status status = pool.Allocate().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("of its 1 are free"));
}

TEST(PagePoolTest, APageComesBackWithItsLastReference) {
  PagePool pool(1);
  PageRef page = *pool.Allocate();
  PageRef shared = page;
  page.reset();
  EXPECT_EQ(pool.free_pages(), 0);
  shared.reset();
  EXPECT_EQ(pool.free_pages(), 1);
  EXPECT_TRUE(pool.Allocate().ok());
}

TEST(PagePoolTest, TakesAllPagesAskedForOrNone) {
  PagePool pool(4);
  std::vector<PageRef> pages;
  ASSERT_TRUE(pool.Allocate(3, &pages).ok());
  EXPECT_EQ(pool.Allocate(2, &pages).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pages.size(), 3);
  EXPECT_EQ(pool.free_pages(), 1);
  EXPECT_TRUE(pool.Allocate(1, &pages).ok());
  EXPECT_TRUE(pool.Allocate(0, &pages).ok());
  EXPECT_EQ(pages.size(), 4);
}

TEST(PagePoolTest, AHeldPoolSetsReturnedPagesAside) {
  PagePool pool(2);
  PageRef page = *pool.Allocate();
  const int32_t id = page->id();
  {
    const PagePool::Hold outer(&pool);
    {
      const PagePool::Hold inner(&pool);
      page.reset();
      EXPECT_EQ(pool.free_pages(), 2);  // it is as good as free
      page = *pool.Allocate();
      EXPECT_NE(page->id(), id);
    }
    EXPECT_FALSE(pool.Allocate().ok());  // the outer hold still has it
  }
  EXPECT_EQ((*pool.Allocate())->id(), id);
}

TEST(PagePoolTest, ThreadsNeverShareAPage) {
  PagePool pool(64);
  std::vector<int> owner(64, -1);  // written without a lock by whoever owns the page: the sanitizer watches
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, &owner, t] {
      for (int i = 0; i < 1000; ++i) {
        std::vector<PageRef> pages;
        if (!pool.Allocate(1 + i % 20, &pages).ok()) continue;
        for (const PageRef& page : pages) owner[page->id()] = t;
        const PagePool::Hold hold(&pool);
        for (const PageRef& page : pages) EXPECT_EQ(owner[page->id()], t);
        pages.clear();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.free_pages(), 64);
}

}  // namespace
}  // namespace santa
