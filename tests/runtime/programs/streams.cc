// C++ streams on a file, while a timer interrupts every system call that it can.
#include <csignal>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <sys/time.h>

static volatile sig_atomic_t hits;

static void hit(int) { hits = hits + 1; }

int main() {
    struct sigaction action = {};
    action.sa_handler = hit; // without SA_RESTART
    sigaction(SIGALRM, &action, nullptr);
    itimerval often = {{0, 500}, {0, 500}};
    setitimer(ITIMER_REAL, &often, nullptr);

    std::string expected;
    for (int round = 0; round < 200 || hits < 20; round++) {
        std::ofstream out("stream", round % 50 ? std::ios::app : std::ios::trunc);
        if (round % 50 == 0)
            expected.clear();
        std::string line(4000 + round, static_cast<char>('a' + round % 26));
        out << line << '\n' << std::flush;
        expected += line + '\n';
        std::fstream both("stream", std::ios::in | std::ios::out);
        both.seekp(round);
        both.put('!');
        expected[round] = '!';
        both.close();
        std::ifstream in("stream");
        std::ostringstream all;
        all << in.rdbuf();
        if (!out || !both || !in || all.str() != expected) {
            std::cout << "streams: differs in round " << round << '\n';
            return 1;
        }
    }
    std::cout << "streams: the same, interrupted\n";
}
