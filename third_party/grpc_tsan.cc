// What ThreadSanitizer must know about the packaged gRPC, which is not instrumented: it cannot see the atomics with
// which gRPC hands work from thread to thread, and takes the inline code of gRPC's own headers for racy. What is
// silenced is that code alone (race_top looks at the innermost frame); a race in our code is reported as everywhere.
#if defined(__SANITIZE_THREAD__)

extern "C" {

const char* __tsan_default_options();  // NOLINT(bugprone-reserved-identifier): the sanitizer's interface
const char* __tsan_default_options() { return "ignore_noninstrumented_modules=1"; }

const char* __tsan_default_suppressions();  // NOLINT(bugprone-reserved-identifier)
const char* __tsan_default_suppressions() {
  return "race_top:include/grpcpp/\n"
         // std::function, std::swap and the construction of atomics, as gRPC's headers use them.
         "race_top:bits/std_function.h\n"
         "race_top:bits/move.h\n"
         "race_top:bits/atomic_base.h\n"
         // What an operation leaves behind before the reaction to it runs: a parsed message, a call's status.
         "race:FinishOp\n"
         // A server's call and the messages of a unary one, made on one of gRPC's threads and destroyed on another.
         "race:DefaultMessageHolder\n"
         // The status of a unary call whose message cannot be read, for the thread that then answers it.
         "race:CallbackUnaryHandler*::Deserialize\n"
         "race:ServerCallbackUnaryImpl::~ServerCallbackUnaryImpl\n"
         "race:ServerCallbackReaderImpl::~ServerCallbackReaderImpl\n"
         "race:ServerCallbackReaderWriterImpl::~ServerCallbackReaderWriterImpl\n"
         // A reactor that finishes before gRPC has taken it over: what it wrote down for then.
         "race:InternalBind\n"
         "race:PreBindBacklog\n";
}

}  // extern "C"

#endif  // defined(__SANITIZE_THREAD__)
