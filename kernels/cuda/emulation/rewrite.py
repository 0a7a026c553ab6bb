"""Turns a CUDA source into C++ that kernels/cuda/emulation/device.h gives a meaning: rewrite.py FROM TO.

Rewritten are the things that a C++ compiler cannot read, line by line so that its messages still fit:

    asm("name.of.instruction %0, %1, 16;" : "=r"(x) : "r"(y))   ptx::name_of_instruction(x, y, 16)
    __shared__ T x, y[N];                                   T& x = ...; T (&y)[N] = ...
    extern __shared__ T x[];                                T* x = ...
    kernel<A><<<blocks, threads>>>(argument)                LaunchKernel({blocks, threads}, kernel<A>, argument)
    threadIdx.x                                             current->threadIdx.x
    *static_cast<volatile T*>(x)                            ReadVolatile(static_cast<volatile T*>(x))
"""

import re
import sys


def operand(text):
    """The expression of an operand, "constraint"(expression)."""
    return text[text.index("(") + 1 : text.rindex(")")]


def split(text, separator):
    """Splits at separators outside of quotes and brackets."""
    parts, depth, quoted = [""], 0, False
    for i, character in enumerate(text):
        quoted ^= character == '"' and text[i - 1] != "\\"
        depth += (character in "([{") - (character in ")]}") if not quoted else 0
        if character == separator and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def rewrite_asm(source):
    while match := re.search(r"\basm(\s+volatile)?\s*\(", source):
        end, depth = match.end(), 1
        while depth > 0:
            depth += (source[end] == "(") - (source[end] == ")")
            end += 1
        template, *operands = split(source[match.end() : end - 1], ":")
        name = template.strip('" \n').split()[0].rstrip(";")
        operands = operands[:2]  # what is clobbered does not matter
        arguments = [operand(part) for group in operands for part in split(group, ",") if part]
        arguments += re.findall(r", (\w[\w.]*)(?=[,;])", template)  # what is not an operand: numbers
        lines = "\n" * source[match.start() : end].count("\n")
        call = "::santa::emulation::ptx::%s(%s)" % (re.sub(r"\W+", "_", name), ", ".join(arguments))
        source = source[: match.start()] + call + lines + source[end:]
    return source


def rewrite_shared(match):
    kind, names = match.group(1), match.group(2)
    declared = []
    for name in split(names, ","):
        name, dimensions = re.fullmatch(r"(\w+)((?:\[.*\])?)", name).groups()
        target = "(&%s)%s" % (name, dimensions) if dimensions else "&" + name
        declared.append(
            '%s %s = ::santa::emulation::StaticShared{__FILE__ ":%s"};' % (kind, target, name)
        )
    return " ".join(declared)


def rewrite(source):
    source = rewrite_asm(source)
    source = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?([\w ]+) (\w+)\[\];",
        r"\1* const \2 = static_cast<\1*>(::santa::emulation::DynamicShared());",
        source,
    )
    source = re.sub(r"(?<!extern )__shared__ (.+?) (\w+(?:\[.*\])?(?:, \w+(?:\[.*?\])?)*);", rewrite_shared, source)
    source = re.sub(
        r"(\w+(?:<[^<;]*>)?)<<<(.*)>>>\(", r"::santa::emulation::LaunchKernel({\2}, \1, ", source
    )
    source = re.sub(r"(?<![.\w])(threadIdx|blockIdx|blockDim|gridDim)\b", r"::santa::emulation::current->\1", source)
    source = re.sub(r"\*(static_cast<volatile [^>]*\*>\([^()]*\))", r"::santa::emulation::ReadVolatile(\1)", source)
    source = source.replace("#include <cuda_pipeline_primitives.h>", "")  # which has no part for a host
    source = source.replace(".cuh\"", ".emulated.h\"").replace("__CUDA_ARCH__", "SANTA_EMULATED_ARCH")
    return source


def main():
    with open(sys.argv[1], encoding="utf-8") as source:
        text = rewrite(source.read())
    with open(sys.argv[2], "w", encoding="utf-8") as target:
        target.write('#include "kernels/cuda/emulation/device.h"\n#line 1 "%s"\n%s' % (sys.argv[1], text))


if __name__ == "__main__":
    main()
