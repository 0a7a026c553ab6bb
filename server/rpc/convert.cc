#include "server/rpc/convert.h"

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace santa {

v1::DataType ToMessage(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return v1::DATA_TYPE_FLOAT32;
    case DType::kBFloat16:
      return v1::DATA_TYPE_BFLOAT16;
    case DType::kFloat16:
      return v1::DATA_TYPE_FLOAT16;
    case DType::kFloat8E4M3:
      return v1::DATA_TYPE_FLOAT8_E4M3;
  }
  return v1::DATA_TYPE_UNSPECIFIED;
}

v1::Method ToMessage(Method method) {
  switch (method) {
    case Method::kExact:
      return v1::METHOD_EXACT;
    case Method::kSanta:
      return v1::METHOD_SANTA;
    case Method::kStratified:
      return v1::METHOD_STRATIFIED;
    case Method::kSystematic:
      return v1::METHOD_SYSTEMATIC;
    case Method::kS2antaFlash:
      return v1::METHOD_S2ANTA_FLASH;
    case Method::kS2antaProp:
      return v1::METHOD_S2ANTA_PROP;
    case Method::kCoordinated:
      return v1::METHOD_COORDINATED;
    case Method::kSketched:
      return v1::METHOD_SKETCHED;
    case Method::kBernoulliQk:
      return v1::METHOD_BERNOULLI_QK;
  }
  return v1::METHOD_UNSPECIFIED;
}

v1::KeyOrder ToMessage(KeyOrder order) {
  switch (order) {
    case KeyOrder::kTokenMajor:
      return v1::KEY_ORDER_TOKEN_MAJOR;
    case KeyOrder::kFeatureMajor:
      return v1::KEY_ORDER_FEATURE_MAJOR;
  }
  return v1::KEY_ORDER_UNSPECIFIED;
}

v1::Sketch ToMessage(Sketch sketch) {
  switch (sketch) {
    case Sketch::kNone:
      return v1::SKETCH_NONE;
    case Sketch::kK4:
      return v1::SKETCH_K4;
    case Sketch::kK4V4:
      return v1::SKETCH_K4V4;
    case Sketch::kK8V8:
      return v1::SKETCH_K8V8;
  }
  return v1::SKETCH_UNSPECIFIED;
}

void ToMessage(const KvLayout& layout, v1::KvLayout* out) {
  out->set_num_layers(layout.num_layers);
  out->set_num_query_heads(layout.num_query_heads);
  out->set_num_kv_heads(layout.num_kv_heads);
  out->set_head_dim(layout.head_dim);
  out->set_dtype(ToMessage(layout.dtype));
  out->set_page_size(layout.page_size);
  out->set_sketch(ToMessage(layout.sketch));
  out->set_key_order(ToMessage(layout.key_order));
}

void ToMessage(const SequenceInfo& info, v1::Sequence* out) {
  out->mutable_handle()->set_id(info.handle.id);
  out->mutable_handle()->set_generation(info.handle.generation);
  out->set_num_tokens(info.num_tokens());
  out->mutable_lengths()->Add(info.lengths.begin(), info.lengths.end());
  out->set_sampling_key(info.sampling_key);
  out->set_lease_seconds(absl::ToDoubleSeconds(info.time_left));
  out->set_num_pages(info.num_pages);
}

namespace {

uint64_t Seal(uint64_t id, uint64_t nonce) {  // SplitMix64's finaliser: a check, not a secret
  uint64_t x = id + nonce;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

std::string MakePageToken(uint64_t after_id, uint64_t nonce) {
  return absl::StrFormat("%016x%016x", after_id, Seal(after_id, nonce));
}

absl::StatusOr<uint64_t> ReadPageToken(const std::string& token, uint64_t nonce) {
  if (token.empty()) return uint64_t{0};
  uint64_t after_id = 0;
  if (token.size() == 32 && absl::SimpleHexAtoi(absl::string_view(token).substr(0, 16), &after_id) &&
      token == MakePageToken(after_id, nonce)) {
    return after_id;
  }
  return absl::InvalidArgumentError(absl::StrCat("page_token is \"", absl::CHexEscape(token.substr(0, 32)),
                                                 "\"; allowed is empty or the last answer's next_page_token"));
}

}  // namespace santa
