// santa.attention.v1.AttentionService: the unary calls, and where the streams begin.
#ifndef SANTA_SERVER_RPC_ATTENTION_SERVICE_H_
#define SANTA_SERVER_RPC_ATTENTION_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>

#include "proto/santa/attention/v1/attention.grpc.pb.h"
#include "server/rpc/ring_poller.h"
#include "server/rpc/service_context.h"
#include "server/rpc/wire.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

// Streams come as raw bytes (see wire.h), so that a message that cannot be read is told from the end of the stream.
using AttentionServiceBase =
    v1::AttentionService::WithCallbackMethod_GetServerInfo<v1::AttentionService::WithCallbackMethod_CreateSequence<
        v1::AttentionService::WithCallbackMethod_ForkSequence<v1::AttentionService::WithCallbackMethod_TruncateSequence<
            v1::AttentionService::WithCallbackMethod_ReleaseSequence<
                v1::AttentionService::WithCallbackMethod_GetSequence<
                    v1::AttentionService::WithCallbackMethod_ListSequences<
                        v1::AttentionService::WithRawCallbackMethod_AppendKv<
                            v1::AttentionService::WithRawCallbackMethod_Attend<
                                v1::AttentionService::WithRawCallbackMethod_AttendShared<
                                    v1::AttentionService::Service>>>>>>>>>>;

// Thread safe; no reaction waits for the device.
class AttentionService final : public AttentionServiceBase {
 public:
  explicit AttentionService(ServiceContext* context);

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* call, const v1::GetServerInfoRequest* request,
                                          v1::ServerInfo* response) override;
  grpc::ServerUnaryReactor* CreateSequence(grpc::CallbackServerContext* call, const v1::CreateSequenceRequest* request,
                                           v1::Sequence* response) override;
  grpc::ServerUnaryReactor* ForkSequence(grpc::CallbackServerContext* call, const v1::ForkSequenceRequest* request,
                                         v1::Sequence* response) override;
  grpc::ServerUnaryReactor* TruncateSequence(grpc::CallbackServerContext* call,
                                             const v1::TruncateSequenceRequest* request,
                                             v1::Sequence* response) override;
  grpc::ServerUnaryReactor* ReleaseSequence(grpc::CallbackServerContext* call,
                                            const v1::ReleaseSequenceRequest* request,
                                            v1::ReleaseSequenceResponse* response) override;
  grpc::ServerUnaryReactor* GetSequence(grpc::CallbackServerContext* call, const v1::GetSequenceRequest* request,
                                        v1::Sequence* response) override;
  grpc::ServerUnaryReactor* ListSequences(grpc::CallbackServerContext* call, const v1::ListSequencesRequest* request,
                                          v1::ListSequencesResponse* response) override;
  grpc::ServerReadReactor<grpc::ByteBuffer>* AppendKv(grpc::CallbackServerContext* call,
                                                      grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Attend(grpc::CallbackServerContext* call) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AttendShared(grpc::CallbackServerContext* call) override;

 private:
  ServiceContext* const context_;
  const uint64_t page_token_nonce_;
  ExchangePool exchanges_;
  RingPoller poller_;
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_ATTENTION_SERVICE_H_
