"""Programs that run where nothing is installed."""

# Everything of third_party of which Debian has an archive, and what those need.
_ARCHIVES = [
    "grpc++_reflection",
    "grpcpp_channelz",
    "grpc++",
    "grpc",
    "gpr",
    "upb",
    "address_sorting",
    "protobuf",
    "cares",
    "re2",
    "ssl",
    "crypto",
    "z",
    "gtest_main",
    "gmock",
    "gtest",
    "absl_bad_optional_access",
    "absl_bad_variant_access",
    "absl_base",
    "absl_city",
    "absl_civil_time",
    "absl_cord",
    "absl_cord_internal",
    "absl_cordz_functions",
    "absl_cordz_handle",
    "absl_cordz_info",
    "absl_debugging_internal",
    "absl_demangle_internal",
    "absl_examine_stack",
    "absl_exponential_biased",
    "absl_failure_signal_handler",
    "absl_flags_commandlineflag",
    "absl_flags_commandlineflag_internal",
    "absl_flags_config",
    "absl_flags_internal",
    "absl_flags_marshalling",
    "absl_flags_parse",
    "absl_flags_private_handle_accessor",
    "absl_flags_program_name",
    "absl_flags_reflection",
    "absl_flags_usage",
    "absl_flags_usage_internal",
    "absl_graphcycles_internal",
    "absl_hash",
    "absl_hashtablez_sampler",
    "absl_int128",
    "absl_leak_check",
    "absl_log_severity",
    "absl_low_level_hash",
    "absl_malloc_internal",
    "absl_random_distributions",
    "absl_random_internal_platform",
    "absl_random_internal_pool_urbg",
    "absl_random_internal_randen",
    "absl_random_internal_randen_hwaes",
    "absl_random_internal_randen_hwaes_impl",
    "absl_random_internal_randen_slow",
    "absl_random_internal_seed_material",
    "absl_random_seed_gen_exception",
    "absl_random_seed_sequences",
    "absl_raw_hash_set",
    "absl_raw_logging_internal",
    "absl_spinlock_wait",
    "absl_stacktrace",
    "absl_status",
    "absl_statusor",
    "absl_str_format_internal",
    "absl_strerror",
    "absl_strings",
    "absl_strings_internal",
    "absl_symbolize",
    "absl_synchronization",
    "absl_throw_delegate",
    "absl_time",
    "absl_time_zone",
]

# For a cc_binary's linkopts: these archives in place of the shared libraries, whose names follow from the dependencies
# and are then not needed. Of Highway, prometheus-cpp, CivetWeb, spdlog and fmt there are shared libraries alone; they,
# and the C++ run time that they share with the program, are looked for in lib/ beside the program too: by the program's
# DT_RPATH, which holds for what these libraries need as well.
PORTABLE_LINKOPTS = ["-Wl,--as-needed", "-Wl,--start-group"] + [
    "-l:lib%s.a" % name
    for name in _ARCHIVES
] + ["-Wl,--end-group", "-Wl,--disable-new-dtags", "-Wl,-rpath,'$$ORIGIN/lib'"]

def portable_program(name, data = [], visibility = None, **kwargs):
    """A cc_binary NAME, and the same as NAME_portable for //tests:gpu_bundle, which is built on request only.

    Args:
      name: of the program.
      data: files that NAME needs beside it; the bundle brings its own.
      visibility: of NAME, or the package's; NAME_portable is for //tests alone.
      **kwargs: srcs, deps, ...
    """
    native.cc_binary(name = name, data = data, visibility = visibility, **kwargs)
    native.cc_binary(
        name = name + "_portable",
        linkopts = PORTABLE_LINKOPTS,
        tags = ["manual"],
        visibility = ["//tests:__pkg__"],
        **kwargs
    )
