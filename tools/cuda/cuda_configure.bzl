"""Finds CUDA, or sets the build to CPU only: the same commands work on a machine with and without it."""

def _cuda_configure_impl(ctx):
    home = ctx.os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = ctx.path(home + "/bin/nvcc")
    ctx.file("WORKSPACE", "workspace(name = \"cuda\")\n")
    ctx.file("defs.bzl", "CUDA_AVAILABLE = %s\nNVCC = \"%s\"\n" % (nvcc.exists, nvcc))
    if not nvcc.exists:
        ctx.file("BUILD", "cc_library(name = \"cudart\", visibility = [\"//visibility:public\"])\n")
        return
    ctx.symlink(home + "/include", "include")
    ctx.symlink(home + "/lib64/libcudart_static.a", "lib/libcudart_static.a")
    ctx.file("BUILD", """
# The run-time library, linked statically: a machine with a driver alone runs what we build.
cc_library(
    name = "cudart",
    srcs = ["lib/libcudart_static.a"],
    hdrs = glob(["include/*.h", "include/*.hpp", "include/crt/*"]),
    includes = ["include"],
    linkopts = ["-ldl", "-lrt", "-lpthread"],
    visibility = ["//visibility:public"],
)
""")

cuda_configure = repository_rule(
    implementation = _cuda_configure_impl,
    environ = ["CUDA_HOME"],
    local = True,
)
