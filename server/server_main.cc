#include "server/server_main.h"

#include <grpc/support/log.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "server/logging/log.h"
#include "server/server.h"
#include "server/server_flags.h"
#include "server/version.h"

namespace santa {
namespace {

constexpr int kDeviceFailed = 3;

int Refuse(const absl::Status& status) {
  Log(LogLevel::kError, "cannot start", {{"error", std::string(status.message())}});
  if (status.code() == absl::StatusCode::kInternal) return kDeviceFailed;  // the self-test
  const bool asked_wrong =
      status.code() == absl::StatusCode::kInvalidArgument || status.code() == absl::StatusCode::kUnimplemented;
  return asked_wrong ? 2 : 1;
}

void LogForGrpc(gpr_log_func_args* line) {
  const LogLevel level = line->severity == GPR_LOG_SEVERITY_ERROR  ? LogLevel::kError
                         : line->severity == GPR_LOG_SEVERITY_INFO ? LogLevel::kInfo
                                                                   : LogLevel::kDebug;
  Log(level, line->message, {{"source", "grpc"}});
}

// Written beside and renamed, so that a reader never sees half a file.
absl::Status WritePortFile(const std::string& path, const AttentionServer& server) {
  const std::string temporary = path + ".new";
  {
    std::ofstream file(temporary);
    file << server.port() << "\n" << server.http_port() << "\n";
    if (!file.flush()) return absl::UnavailableError("cannot write --port_file " + path);
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError("cannot write --port_file " + path);
  }
  return absl::OkStatus();
}

// The signal, or 0 when the device failed. Health and readiness tell of that at once; the process follows within 200
// ms.
int WaitForSignalOrFailure(const sigset_t& signals, const AttentionServer& server) {
  constexpr timespec kInterval = {.tv_sec = 0, .tv_nsec = 200'000'000};
  while (server.device_status().ok()) {
    const int signal = sigtimedwait(&signals, nullptr, &kInterval);
    if (signal > 0) return signal;
  }
  return 0;
}

}  // namespace

int ServerMain(int argc, char** argv, const std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)>& wrap) {
  // Blocked before any thread starts, so that they all inherit it and sigwait alone sees the signals.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  gpr_set_log_function(LogForGrpc);
  if (const std::optional<std::string> text = HelpOrVersion(argc, argv); text.has_value()) {
    return std::fputs(text->c_str(), stdout) < 0 || std::fflush(stdout) != 0 ? 1 : 0;
  }
  const absl::StatusOr<std::vector<Setting>> settings = ParseServerFlags(argc, argv, environ);
  if (!settings.ok()) return Refuse(settings.status());
  absl::StatusOr<ServerOptions> options = OptionsFromFlags();
  if (!options.ok()) return Refuse(options.status());
  LogSettings(*settings);
  absl::StatusOr<KvScales> scales = KvScalesFromFlags();
  if (!scales.ok()) return Refuse(scales.status());
  options->kv_scales = *std::move(scales);
  absl::StatusOr<std::unique_ptr<Backend>> backend = BackendFromFlags();
  if (!backend.ok()) return Refuse(backend.status());
  if (wrap) backend = wrap(*std::move(backend));
  const KvLayout layout = (*backend)->layout();
  const int32_t pages = (*backend)->num_pages();
  const std::string device = (*backend)->device();
  const absl::StatusOr<std::unique_ptr<AttentionServer>> started =
      AttentionServer::Start(*options, *std::move(backend));
  if (!started.ok()) return Refuse(started.status());
  AttentionServer& server = **started;
  if (const std::string path = PortFileFromFlags(); !path.empty()) {
    if (absl::Status status = WritePortFile(path, server); !status.ok()) return Refuse(status);
  }
  Log(LogLevel::kInfo, "serving",
      {{"version", kServerVersion},
       {"address", options->host},
       {"port", server.port()},
       {"http_port", server.http_port()},
       {"device", device},
       {"layers", layout.num_layers},
       {"query_heads", layout.num_query_heads},
       {"kv_heads", layout.num_kv_heads},
       {"head_dim", layout.head_dim},
       {"dtype", Name(layout.dtype)},
       {"page_size", layout.page_size},
       {"key_order", Name(layout.key_order)},
       {"pages", pages},
       {"kv_bytes", static_cast<int64_t>(layout.page_bytes()) * pages},
       {"sketch", Name(layout.sketch)},
       {"sketch_bytes", static_cast<int64_t>(layout.sketch_page_bytes()) * pages},
       {"tls", !options->tls_certificate.empty()}});

  const int signal = WaitForSignalOrFailure(signals, server);
  const char* const reason = signal == 0 ? "the device failed" : signal == SIGTERM ? "SIGTERM" : "SIGINT";
  Log(LogLevel::kInfo, "draining",
      {{"reason", reason}, {"grace_seconds", absl::ToDoubleSeconds(options->drain_grace)}});
  server.Drain();
  Log(LogLevel::kInfo, "stopped");
  return signal == 0 ? kDeviceFailed : 0;
}

}  // namespace santa
