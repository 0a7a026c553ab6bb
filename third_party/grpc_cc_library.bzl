"""C++ messages and gRPC stubs from .proto files, by the system's protoc."""

def grpc_cc_library(name, src, visibility = None):
    """Generates and compiles one proto file, included as "<package>/<file>.pb.h" and "<file>.grpc.pb.h".

    Args:
      name: the cc_library.
      src: the .proto file of this package; it may import Google's well-known types alone.
      visibility: as everywhere.
    """
    stem = src[:-len(".proto")]
    outs = [stem + end for end in (".pb.h", ".pb.cc", ".grpc.pb.h", ".grpc.pb.cc")]
    native.genrule(
        name = name + "_generate",
        srcs = [src],
        outs = outs,
        cmd = "protoc -I. --cpp_out=$(GENDIR) --grpc_out=$(GENDIR) " +
              "--plugin=protoc-gen-grpc=$$(command -v grpc_cpp_plugin) $(location %s)" % src,
    )
    native.cc_library(
        name = name,
        srcs = [out for out in outs if out.endswith(".cc")],
        hdrs = [out for out in outs if out.endswith(".h")],
        copts = ["-w"],
        visibility = visibility,
        deps = ["//third_party:grpc"],
    )
