// A TCP proxy on 127.0.0.1 that loses connections where a test says so.
#ifndef SANTA_TESTS_CLIENT_LIBRARY_PROXY_H_
#define SANTA_TESTS_CLIENT_LIBRARY_PROXY_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace santa {

// Bytes that a connection carries in each direction, >= 0. Once it has carried so many in either, it is cut in both:
// what lies beyond them never arrives.
struct CutAfter {
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  int64_t to_server = kNever;
  int64_t to_client = kNever;
};

// Thread safe but for the destructor, which cuts what is open.
class CuttingProxy {
 public:
  // Passes connections on to 127.0.0.1:server_port. The i-th one is cut after plan[i], later ones after `rest`.
  // Throws std::system_error when the system has no socket for it.
  explicit CuttingProxy(int server_port, std::vector<CutAfter> plan = {}, CutAfter rest = {});
  ~CuttingProxy();
  CuttingProxy(const CuttingProxy&) = delete;
  CuttingProxy& operator=(const CuttingProxy&) = delete;

  std::string target() const;  // "127.0.0.1:port"

  // Cuts every connection that is open; new ones may follow.
  void CutAll();

  int connections() const { return connected_; }
  int cuts() const { return cuts_; }  // connections cut by CutAll or their CutAfter
  // Bytes passed on, over all connections.
  int64_t to_server() const { return to_server_; }
  int64_t to_client() const { return to_client_; }

 private:
  struct Connection;

  void Accept();
  void Forward(Connection& connection, int from, int to, int64_t limit, std::atomic<int64_t>& total);
  void Cut(Connection& connection);

  const std::vector<CutAfter> plan_;
  const CutAfter rest_;
  const int server_port_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<int> connected_ = 0;
  std::atomic<int> cuts_ = 0;
  std::atomic<int64_t> to_server_ = 0;
  std::atomic<int64_t> to_client_ = 0;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::thread acceptor_;
};

}  // namespace santa

#endif  // SANTA_TESTS_CLIENT_LIBRARY_PROXY_H_
