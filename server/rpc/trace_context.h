// The W3C trace context (www.w3.org/TR/trace-context) that a call came with.
#ifndef SANTA_SERVER_RPC_TRACE_CONTEXT_H_
#define SANTA_SERVER_RPC_TRACE_CONTEXT_H_

#include <grpcpp/server_context.h>

#include <optional>
#include <string>
#include <string_view>

namespace santa {

struct TraceContext {
  std::string trace_id;   // 32 hexadecimal digits, lower case; empty: the call had none
  std::string parent_id;  // 16 of them: the caller's span
};

// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", or a later version's that begins alike. Nothing for
// anything else: a broken context is to be ignored.
std::optional<TraceContext> ParseTraceparent(std::string_view header);

// From the call's `traceparent` metadata.
TraceContext TraceOf(const grpc::ServerContextBase& call);

}  // namespace santa

#endif  // SANTA_SERVER_RPC_TRACE_CONTEXT_H_
