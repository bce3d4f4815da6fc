import Glibc
import Synchronization

/// Four threads count up under one contended mutex; with the argument `race`, without taking it.
///
/// What the thread sanitizer says about it is checked by `run.sh`, with and without MutexEdges.
@main
enum Contention {
    static func main() {
        print(count(races: CommandLine.arguments.contains("race")))
    }
}

final class Counter: Sendable {
    let guarded = Mutex([0])
    // SAFETY: not safe: this is the race that the sanitizer has to find.
    nonisolated(unsafe) var bare = [0]
    let races: Bool

    init(races: Bool) { self.races = races }

    func countUp() {
        for _ in 0..<20_000 {
            if races {
                bare[0] += 1
            } else {
                guarded.withLock { $0[0] += 1 }
            }
        }
    }
}

/// Not in `Contention`, which belongs to the main actor: its closures may not run on other threads.
private func count(races: Bool) -> Int {
    let counter = Counter(races: races)
    var threads: [pthread_t] = []
    for _ in 0..<4 {
        var thread = pthread_t()
        let argument = Unmanaged.passRetained(counter).toOpaque()
        pthread_create(&thread, nil, countOnThread, argument)
        threads.append(thread)
    }
    for thread in threads { pthread_join(thread, nil) }
    return counter.guarded.withLock { $0[0] }
}

private func countOnThread(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    if let argument { Unmanaged<Counter>.fromOpaque(argument).takeRetainedValue().countUp() }
    return nil
}
