"""Compiles CUDA sources with nvcc into a library that C++ targets link."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@cuda//:defs.bzl", "CUDA_AVAILABLE", "NVCC")
load("//tools/bazel:portable.bzl", "PORTABLE_LINKOPTS")

# Ampere, Ada and Hopper in machine code, and PTX for what follows: two of nvcc's front-end passes for the four, as long as
# no kernel uses what Ada has and Ampere has not, or what sm_90a alone has.
_TARGETS = [
    "arch=compute_80,code=[sm_80,sm_89]",
    "arch=compute_90,code=[sm_90a,compute_90]",
]

# --define=cuda=emulated: for the processor, as kernels/cuda/emulation/README.md says.
_EMULATED_COPTS = ["-march=x86-64-v3", "-ffp-contract=off", "-fno-strict-aliasing", "-w"]

def _rewritten(ctx, file):
    if file.extension == "h":
        return file
    to = ctx.actions.declare_file(file.basename.replace(".cuh", ".emulated.h").replace(".cu", ".emulated.cc"))
    ctx.actions.run_shell(
        command = "exec python3 $1 $2 $3",
        arguments = [ctx.file._rewrite.path, file.path, to.path],
        inputs = [ctx.file._rewrite, file],
        outputs = [to],
        use_default_shell_env = True,
    )
    return to

def _emulated(ctx, toolchain, features):
    infos = [dep[CcInfo] for dep in ctx.attr.deps + [ctx.attr._emulation]]
    compilation, outputs = cc_common.compile(
        actions = ctx.actions,
        name = ctx.label.name,
        cc_toolchain = toolchain,
        feature_configuration = features,
        srcs = [_rewritten(ctx, file) for file in ctx.files.srcs],
        public_hdrs = [_rewritten(ctx, file) for file in ctx.files.hdrs],
        compilation_contexts = [info.compilation_context for info in infos],
        user_compile_flags = _EMULATED_COPTS,
    )
    linking, _ = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        name = ctx.label.name,
        cc_toolchain = toolchain,
        feature_configuration = features,
        compilation_outputs = outputs,
        linking_contexts = [info.linking_context for info in infos],
        disallow_dynamic_library = True,
    )
    return [CcInfo(compilation_context = compilation, linking_context = linking)]

def _cuda_objects_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(ctx = ctx, cc_toolchain = toolchain)
    if ctx.var.get("cuda") == "emulated":
        return _emulated(ctx, toolchain, features)
    compilation = cc_common.merge_cc_infos(cc_infos = [dep[CcInfo] for dep in ctx.attr.deps]).compilation_context
    headers = depset(ctx.files.hdrs, transitive = [compilation.headers])
    ours = ctx.actions.args()
    ours.add_all([header for header in headers.to_list() if header.owner.workspace_name == ""])
    ours.use_param_file("%s", use_always = True)
    objects = []
    for src in ctx.files.srcs:
        obj = ctx.actions.declare_file("%s/%s.o" % (ctx.label.name, src.basename))
        unused = ctx.actions.declare_file("%s/%s.unused" % (ctx.label.name, src.basename))
        args = ctx.actions.args()
        args.add_all([obj, unused, NVCC])
        args.add_all(["-c", "-std=c++20", "-O3", "-Xcompiler=-fPIC", "-compress-mode=size", "-I."])
        if ctx.var.get("cuda_lineinfo"):  # --define=cuda_lineinfo=1: profilers name source lines; objects grow fivefold
            args.add("-lineinfo")
        # --config=hopper, say: for one chip alone.
        args.add_all([ctx.var["cuda_targets"]] if "cuda_targets" in ctx.var else _TARGETS, before_each = "-gencode")
        args.add_all(compilation.quote_includes, before_each = "-I")
        args.add_all(compilation.system_includes, before_each = "-isystem")
        args.add_all(ctx.attr.copts)
        args.add(src)
        ctx.actions.run(
            executable = ctx.file._compile,
            arguments = [ours, args],
            inputs = depset([src], transitive = [headers]),
            tools = [ctx.file._compile],
            outputs = [obj, unused],
            unused_inputs_list = unused,
            mnemonic = "CudaCompile",
            progress_message = "Compiling %s with nvcc" % src.short_path,
            use_default_shell_env = True,
        )
        objects.append(obj)
    linking, _ = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        name = ctx.label.name,
        cc_toolchain = toolchain,
        feature_configuration = features,
        compilation_outputs = cc_common.create_compilation_outputs(
            objects = depset(objects),
            pic_objects = depset(objects),
        ),
        linking_contexts = [dep[CcInfo].linking_context for dep in ctx.attr.deps],
        disallow_dynamic_library = True,
    )
    return [
        DefaultInfo(files = depset(objects)),
        CcInfo(
            compilation_context = cc_common.create_compilation_context(
                headers = headers,
            ),
            linking_context = linking,
        ),
    ]

_cuda_objects = rule(
    implementation = _cuda_objects_impl,
    attrs = {
        "copts": attr.string_list(),
        "deps": attr.label_list(providers = [CcInfo]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "srcs": attr.label_list(allow_files = [".cu"]),
        "_compile": attr.label(default = "//tools/cuda:nvcc_unused.sh", allow_single_file = True),
        "_emulation": attr.label(default = "//kernels/cuda/emulation", providers = [CcInfo]),
        "_rewrite": attr.label(default = "//kernels/cuda/emulation:rewrite.py", allow_single_file = True),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

def cuda_library(name, deps = [], **kwargs):
    """A library of CUDA sources; declares nothing where CUDA is not installed.

    Args:
      name: of the library; select it only where CUDA_AVAILABLE of @cuda//:defs.bzl holds.
      deps: C++ libraries.
      **kwargs: srcs (.cu), hdrs, copts for nvcc, visibility, ...
    """
    if CUDA_AVAILABLE:
        _cuda_objects(name = name, deps = deps + ["@cuda//:cudart"], **kwargs)

def cuda_test(name, **kwargs):
    """A cc_test of CUDA libraries, declared where CUDA is installed; it skips itself where there is no GPU.

    Linked as the programs of //tests:gpu_bundle are: a machine with a driver alone runs it.

    Args:
      name: of the test.
      **kwargs: as for cc_test.
    """
    if CUDA_AVAILABLE:
        native.cc_test(name = name, linkopts = PORTABLE_LINKOPTS, linkstatic = True, tags = ["gpu"], **kwargs)
