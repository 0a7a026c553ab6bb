"""Tests in Python."""

def python_test(name, srcs, data = [], **kwargs):
    """Runs the first of SRCS, a unittest program, with Debian's python3; it can import the others, and data by paths from the root.

    Not py_test: Bazel 4 starts that with a program called python, which Debian 12 does not have.

    Args:
      name: of the test.
      srcs: Python files of one folder.
      data: what the test reads, by paths from the root of the repository.
      **kwargs: size, tags, ...
    """
    native.sh_test(
        name = name,
        srcs = ["//tools/bazel:run_python.sh"],
        args = ["$(location %s)" % srcs[0]],
        data = srcs + data,
        **kwargs
    )
