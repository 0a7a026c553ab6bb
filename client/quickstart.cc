// Stores the keys and values of a prompt, then decodes four steps of one layer. Usage: quickstart [HOST:PORT]
#include <cmath>
#include <cstdio>
#include <vector>

#include "client/attention_client.h"

using namespace santa;  // NOLINT(google-build-using-namespace): a program of one page

// Stands for the model: a tensor of bfloat16 filled with smooth numbers.
Tensor Activations(std::vector<int64_t> shape, float phase) {
  std::vector<float> values(shape[0] * shape[1] * shape[2]);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(0.1f * static_cast<float>(i) + phase);
  return FromFloats(values, std::move(shape), ElementType::kBFloat16);
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

int main(int argc, char** argv) {
  auto client = AttentionClient::Connect(argc > 1 ? argv[1] : "127.0.0.1:50051");
  if (!client.ok()) return Fail(client.status());
  const v1::KvLayout& layout = (*client)->info().layout();
  const int64_t heads = layout.num_query_heads(), kv_heads = layout.num_kv_heads(), dim = layout.head_dim();

  auto sequence = OwnedSequence::Create(**client);  // released at the end of the scope
  if (!sequence.ok()) return Fail(sequence.status());

  constexpr int64_t kPrompt = 1000;
  const Tensor k = Activations({kPrompt, kv_heads, dim}, 0), v = Activations({kPrompt, kv_heads, dim}, 1);
  auto stored = (*client)->AppendKv(sequence->handle(), {.layer = 0, .position = 0, .k = k.view(), .v = v.view()});
  if (!stored.ok()) return Fail(stored.status());

  auto stream = (*client)->OpenAttendStream();
  for (int64_t position = kPrompt; position < kPrompt + 4; ++position) {
    v1::AttendRequest request;  // one layer, one sequence; a server's batch would add an item for each sequence
    v1::AttendItem& item = *request.add_items();
    *item.mutable_handle() = sequence->handle();
    item.set_position(position);
    *item.mutable_q() = ToWire(Activations({1, heads, dim}, 2).view());
    *item.mutable_k() = ToWire(Activations({1, kv_heads, dim}, 3).view());  // the new token's; appended first
    *item.mutable_v() = ToWire(Activations({1, kv_heads, dim}, 4).view());
    item.mutable_options()->set_method(v1::METHOD_S2ANTA_FLASH);
    item.mutable_options()->set_sample_count(128);  // value rows read for each query head, instead of all 1000

    auto response = stream->Attend(request);  // Submit() returns a future: keep many in flight
    if (!response.ok()) return Fail(response.status());
    const v1::AttendResult& result = response->results(0);
    if (result.status().code() != 0) return Fail(ToStatus(result.status()));
    const std::vector<float> o = *ToFloats(result.o());
    std::printf("position %ld: o[0][0..2] = %.4f %.4f %.4f, lse[0] = %.4f\n", position, o[0], o[1], o[2],
                result.lse(0));
  }
}
