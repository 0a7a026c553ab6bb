"""Runs clang-tidy over the C++ sources of targets and of all they depend on, one cached action a file."""

TidyInfo = provider(fields = {"reports": "depset of what clang-tidy printed for each file: nothing, or its action fails"})

def _clang_tidy_aspect_impl(target, ctx):
    deps = getattr(ctx.rule.attr, "deps", [])
    inherited = [dep[TidyInfo].reports for dep in deps if TidyInfo in dep]
    files = ctx.rule.files

    # Generated code is its generator's business; headers are seen through the sources that include them.
    sources = [src for src in getattr(files, "srcs", []) if src.extension == "cc" and src.is_source]
    if not sources or not ctx.rule.kind.startswith("cc_"):
        return [TidyInfo(reports = depset(transitive = inherited))]

    contexts = [dep[CcInfo] for dep in deps + [target] if CcInfo in dep]
    context = cc_common.merge_cc_infos(cc_infos = contexts).compilation_context
    flags = ["-std=c++20", "-iquote.", "-DHWY_COMPILE_ONLY_STATIC"]
    flags += ["-iquote" + path for path in context.quote_includes.to_list()]
    flags += ["-isystem" + path for path in context.system_includes.to_list()]
    flags += ["-D" + define for define in context.defines.to_list()]
    reports = []
    for src in sources:
        report = ctx.actions.declare_file("%s.%s.tidy" % (ctx.rule.attr.name, src.basename))
        ctx.actions.run_shell(
            inputs = depset(
                [src, ctx.file._config] + files.srcs + getattr(files, "hdrs", []),
                transitive = [context.headers],
            ),
            outputs = [report],
            command = "clang-tidy-14 --quiet --config-file={config} {src} -- {flags} > {report} 2>/dev/null || {{ cat {report}; exit 1; }}".format(
                config = ctx.file._config.path,
                src = src.path,
                flags = " ".join(flags),
                report = report.path,
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

def _clang_tidy_reports_impl(ctx):
    reports = depset(transitive = [dep[TidyInfo].reports for dep in ctx.attr.deps])
    return [DefaultInfo(files = reports, runfiles = ctx.runfiles(transitive_files = reports))]

clang_tidy_reports = rule(
    doc = "The reports of every C++ source of `deps` and of all they depend on; builds only if all are clean.",
    implementation = _clang_tidy_reports_impl,
    attrs = {"deps": attr.label_list(aspects = [_clang_tidy_aspect])},
)
