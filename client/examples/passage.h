#ifndef SANTA_CLIENT_EXAMPLES_PASSAGE_H_
#define SANTA_CLIENT_EXAMPLES_PASSAGE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace santa {

// "[The pass key of box 0417 is 48213.]" hidden in the prompt, asked for after it. model/tasks.py plants the same
// format in training.
struct PassKey {
  std::string note;
  std::string question;
  std::string answer;  // five digits
};

// A held-out text as a test of long context: the bytes of the text, pass keys hidden in them, up to `prompt`'s end; how
// the text goes on; and the questions, each of which follows the prompt.
struct Passage {
  std::string name;
  std::string prompt;
  std::string continuation;
  std::vector<PassKey> keys;
};

struct PassageOptions {
  int64_t context = 4096;      // bytes of prompt and continuation
  int64_t continuation = 257;  // the first is only read, the others are scored as well
  int32_t num_keys = 8;        // [0, 1000], hidden at even depths
  uint64_t seed = 1;           // of the box numbers and keys
};

// Makes a passage of a text. INVALID_ARGUMENT when the text is too short or the keys fill more than half of the prompt.
absl::StatusOr<Passage> MakePassage(const std::string& name, const std::string& text, const PassageOptions& options);

// The *.txt files of the folder, in order of their names. NOT_FOUND when there are none.
absl::StatusOr<std::vector<std::string>> ListTexts(const std::string& folder);
absl::StatusOr<std::string> ReadText(const std::string& path);

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_PASSAGE_H_
