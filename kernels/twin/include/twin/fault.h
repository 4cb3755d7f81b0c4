// A fault stops the run. Its text names the kernel, the block, the call and the line of the kernel.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>

namespace twin {

// The line of the kernel that called an API function: the last, defaulted parameter of each.
struct At {
    const char *file;
    int line;
    static At Here(const char *file = __builtin_FILE(), int line = __builtin_LINE())
    {
        return {file, line};
    }
};

struct Fault {
    std::string text;
};

// Where the run is; kept by the machine, read when something fails.
struct Position {
    std::string kernel;
    int block = 0;
    const char *call = "start";
    At at{"", 0};
};

inline Position position;

inline std::string Place(const char *call, At at)
{
    const std::string path = at.file;
    const size_t slash = path.rfind('/');
    return std::string(call) + " at " + (slash == std::string::npos ? path : path.substr(slash + 1))
           + ":" + std::to_string(at.line);
}

inline std::string Format(const char *format, va_list values)
{
    char text[1024];
    std::vsnprintf(text, sizeof text, format, values);
    return text;
}

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void Fail(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    const std::string text = Format(format, values);
    va_end(values);
    std::string where = position.kernel + ": block " + std::to_string(position.block) + ": ";
    if (position.at.line) {
        where += Place(position.call, position.at) + ": ";
    }
    throw Fault{where + text};
}

} // namespace twin
