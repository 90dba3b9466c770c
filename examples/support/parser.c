/* A parser of lists like (one (2 3) "four"), with three bugs. For examples/triage.rs. */

#include <stdlib.h>
#include <string.h>

struct reader {
    const char *at, *end;
};

int read_list(struct reader *reader);

/* Bug: an empty name has no entry, and the entry is read all the same. */
__attribute__((noinline)) int read_name(struct reader *reader) {
    static const char first[] = "names";
    const char *start = ++reader->at;
    while (reader->at < reader->end && *reader->at != '"')
        reader->at++;
    const char *volatile entry = reader->at > start ? first : NULL;
    reader->at++;
    return *entry;
}

/* Bug: a number that is too long is no error of the input, but the end of the process. */
__attribute__((noinline)) int read_number(struct reader *reader) {
    const char *start = reader->at;
    while (reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9')
        reader->at++;
    if (reader->at - start > 18)
        abort();
    return 1;
}

/* Inlined: a stack that overflows then always does so in read_list, and not now and then in here. */
static inline __attribute__((always_inline)) int read_value(struct reader *reader) {
    switch (*reader->at) {
    case '(':
        return read_list(reader);
    case '"':
        return read_name(reader) > 0;
    case '0' ... '9':
        return read_number(reader);
    default:
        reader->at++;
        return 0;
    }
}

/* Bug: lists in lists may be as deep as the input says. */
__attribute__((noinline)) int read_list(struct reader *reader) {
    /* clang would shorten an array of which it knows what is used. */
    volatile char frame[4096];
    size_t used = (size_t)(reader->end - reader->at) % sizeof frame;
    frame[used] = 1;
    int values = 0;
    reader->at++;
    while (reader->at < reader->end && *reader->at != ')')
        values += read_value(reader);
    reader->at++;
    return values + frame[used] - 1;
}

/* Returns how many values the text has. */
int parse(const char *text, size_t len) {
    struct reader reader = {text, text + len};
    int values = 0;
    while (reader.at < reader.end)
        values += read_value(&reader);
    return values;
}
