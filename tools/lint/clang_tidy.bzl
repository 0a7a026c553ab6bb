"""Runs clang-tidy over the C++ sources of targets and of all they depend on, one cached action a file."""

TidyInfo = provider(fields = {"reports": "depset of the stamps that clean files leave"})

def _tidy_sources(rule):
    # Generated code is its generator's business, headers are seen through the sources that include them.
    return [
        src
        for src in getattr(rule.files, "srcs", [])
        if src.extension == "cc" and src.is_source
    ]

def _clang_tidy_aspect_impl(target, ctx):
    inherited = [dep[TidyInfo].reports for dep in getattr(ctx.rule.attr, "deps", []) if TidyInfo in dep]
    if CcInfo not in target:
        return [TidyInfo(reports = depset(transitive = inherited))]
    context = target[CcInfo].compilation_context
    flags = ["-std=c++20", "-iquote.", "-DHWY_COMPILE_ONLY_STATIC"]
    flags += ["-iquote" + path for path in context.quote_includes.to_list()]
    flags += ["-isystem" + path for path in context.system_includes.to_list()]
    flags += ["-D" + define for define in context.defines.to_list()]
    headers = [header for header in getattr(ctx.rule.files, "hdrs", []) + ctx.rule.files.srcs]
    reports = []
    for src in _tidy_sources(ctx.rule):
        report = ctx.actions.declare_file("%s.%s.tidy" % (ctx.rule.attr.name, src.basename))
        ctx.actions.run_shell(
            inputs = depset([src, ctx.file._config] + headers, transitive = [context.headers]),
            outputs = [report],
            command = "clang-tidy-14 --quiet --config-file=%s %s -- %s > %s 2>&1 || { cat %s; exit 1; }" % (
                ctx.file._config.path,
                src.path,
                " ".join(flags),
                report.path,
                report.path,
            ),
            mnemonic = "ClangTidy",
            progress_message = "Running clang-tidy on %s" % src.short_path,
            use_default_shell_env = True,
        )
        reports.append(report)
    return [TidyInfo(reports = depset(reports, transitive = inherited))]

_clang_tidy_aspect = aspect(
    implementation = _clang_tidy_aspect_impl,
    attr_aspects = ["deps"],
    attrs = {"_config": attr.label(default = "//:.clang-tidy", allow_single_file = True)},
)

def _clang_tidy_test_impl(ctx):
    reports = depset(transitive = [dep[TidyInfo].reports for dep in ctx.attr.deps])
    script = ctx.actions.declare_file(ctx.label.name + ".sh")

    # A file with a finding fails its action, and so the test; here only remains to see that files were looked at.
    ctx.actions.write(
        script,
        "#!/bin/sh\necho {n} files are clean\ntest {n} -gt 0\n".format(n = len(reports.to_list())),
        is_executable = True,
    )
    return [DefaultInfo(executable = script, runfiles = ctx.runfiles(transitive_files = reports))]

clang_tidy_test = rule(
    implementation = _clang_tidy_test_impl,
    attrs = {"deps": attr.label_list(aspects = [_clang_tidy_aspect])},
    test = True,
)
