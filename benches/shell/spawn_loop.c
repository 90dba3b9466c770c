/* The least that N programs can cost: started by posix_spawn, two or more at a time, and waited for.
   No output is read, no input is passed on, and nothing is said of how they ended. */

#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

extern char **environ;

static void collect(int *running) {
    int status;
    if (wait(&status) == -1 || status != 0) exit(1);
    --*running;
}

int main(int count, char **words) {
    if (count < 4) {
        fputs("usage: spawn_loop AT_A_TIME TIMES PROGRAM [WORD ...]\n", stderr);
        return 2;
    }
    int at_a_time = atoi(words[1]), running = 0;
    for (int left = atoi(words[2]); left > 0; --left) {
        if (running == at_a_time) collect(&running);
        pid_t pid;
        if (posix_spawnp(&pid, words[3], NULL, NULL, words + 3, environ) != 0) return 1;
        ++running;
    }
    while (running > 0) collect(&running);
    return 0;
}
