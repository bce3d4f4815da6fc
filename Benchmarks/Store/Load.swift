import BlockIO
import Glibc
import Synchronization

/// What a load is run against: a volume of the store, or a file with pwrite and fdatasync.
protocol Subject: AnyObject, Sendable {
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws
    func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws
    func unmap(at offset: UInt64, lengthBytes: UInt64) throws
    func flush() throws
}

final class DeviceSubject: Subject {
    private let device: any BlockDevice

    init(_ device: any BlockDevice) { self.device = device }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws {
        try device.read(at: offset, into: buffer)
    }

    func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws {
        try device.write(at: offset, from: buffer, durability: .cached)
    }

    func unmap(at offset: UInt64, lengthBytes: UInt64) throws { try device.unmap(at: offset, lengthBytes: lengthBytes) }

    func flush() throws { try device.flush() }
}

/// A file with pwrite, pread and fdatasync.
final class FileSubject: Subject {
    struct SystemError: Error { var errno: Int32 }

    private let descriptor: Int32
    /// Each write goes behind the one before, where the file has no storage yet, whatever its offset.
    private let allocatesAnew: Bool
    private let end = Atomic<UInt64>(0)

    /// With `isDirect` past the page cache.
    init(path: String, isDirect: Bool = false, allocatesAnew: Bool = false) throws {
        descriptor = open(path, O_RDWR | O_CLOEXEC | (isDirect ? 0o40000 : 0))
        guard descriptor >= 0 else { throw SystemError(errno: errno) }
        self.allocatesAnew = allocatesAnew
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws {
        guard pread(descriptor, buffer.baseAddress, buffer.count, off_t(offset)) == buffer.count else {
            throw SystemError(errno: errno)
        }
    }

    func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws {
        var offset = offset
        if allocatesAnew { offset = end.add(UInt64(buffer.count), ordering: .relaxed).oldValue }
        guard pwrite(descriptor, buffer.baseAddress, buffer.count, off_t(offset)) == buffer.count else {
            throw SystemError(errno: errno)
        }
    }

    func unmap(at offset: UInt64, lengthBytes: UInt64) throws { throw SystemError(errno: EOPNOTSUPP) }

    func flush() throws { guard fdatasync(descriptor) == 0 else { throw SystemError(errno: errno) } }

    func close() { _ = Glibc.close(descriptor) }
}

/// One load: `depth` calls under way, by as many threads or by fewer that take the oldest call that waits.
struct Load: Sendable {
    enum Pattern: String, Sendable { case random, sequential, step }

    var isWrite = true
    var pattern = Pattern.random
    var depth = 1
    /// 0 for as many as `depth`.
    var threads = 0
    var blockBytes = 4096
    var sizeBytes: UInt64 = 1 << 30
    var seconds = 2.0
    /// Ends after so many calls where it is not 0, whatever `seconds` says.
    var calls: UInt64 = 0
    /// A flush after so many writes of all threads together; 0 for none but the one at the end.
    var flushInterval: UInt64 = 0
    var stepBytes: UInt64 = 0
    var seed: UInt64 = 1
}

/// Times in buckets of about 4 %.
struct Histogram: Sendable {
    private var buckets = [UInt32](repeating: 0, count: 1024)
    private(set) var count: UInt64 = 0
    private(set) var longest: UInt64 = 0

    mutating func add(_ nanoseconds: UInt64) {
        buckets[Self.bucket(nanoseconds)] += 1
        count += 1
        longest = max(longest, nanoseconds)
    }

    mutating func add(_ other: Histogram) {
        for index in buckets.indices { buckets[index] += other.buckets[index] }
        count += other.count
        longest = max(longest, other.longest)
    }

    private static func bucket(_ value: UInt64) -> Int {
        guard value >= 16 else { return Int(value) }
        let exponent = 63 - value.leadingZeroBitCount
        return exponent * 16 + Int(value >> UInt64(exponent - 4) & 15)
    }

    private static func value(_ bucket: Int) -> UInt64 {
        guard bucket >= 64 else { return UInt64(bucket) }
        return (UInt64(bucket % 16) + 16) << UInt64(bucket / 16 - 4)
    }

    func quantile(_ part: Double) -> UInt64 {
        var left = UInt64(Double(count) * part)
        for (index, bucket) in buckets.enumerated() {
            if UInt64(bucket) > left { return Self.value(index) }
            left -= UInt64(bucket)
        }
        return longest
    }
}

func nanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// xorshift64*, one for each thread.
struct Generator {
    private var state: UInt64

    init(_ seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }

    mutating func next() -> UInt64 {
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        return state &* 0x2545_f491_4f6c_dd1d
    }
}

struct LoadResult: Sendable {
    var calls: UInt64
    var seconds: Double
    /// Time of each call without the flushes.
    var latency: Histogram
    /// Of the calls that overlapped a window.
    var inWindow: Histogram
    var flushes: UInt64
    var failure: String?

    var json: String {
        let rate = Double(calls) / seconds
        var text = "{\"calls\":\(calls),\"seconds\":\(seconds),\"rate\":\(rate),\"flushes\":\(flushes)"
        text += ",\"p50us\":\(Double(latency.quantile(0.5)) / 1000),\"p99us\":\(Double(latency.quantile(0.99)) / 1000)"
        text += ",\"maxus\":\(Double(latency.longest) / 1000)"
        if let failure { text += ",\"failure\":\"\(failure)\"" }
        return text + "}"
    }
}

/// A load that runs on threads of its own until it has done what it should or is told to end.
final class RunningLoad: @unchecked Sendable {
    private let load: Load
    private let subject: any Subject
    private let started = nanoseconds()
    private let issued = Atomic<UInt64>(0)
    private let flushes = Atomic<UInt64>(0)
    private let mustEnd = Atomic<Bool>(false)
    private struct Sums {
        var latency = Histogram()
        var inWindow = Histogram()
        var calls: UInt64 = 0
        var failure: String?
    }
    private let results = Mutex(Sums())

    /// When a call was issued, and the window then.
    private struct Issued {
        var at: UInt64
        var window: UInt64
    }

    /// A ring of the calls that no thread has taken yet, the oldest first.
    private struct Waiting {
        var calls: [Issued]
        var first = 0
        var count = 0
    }

    /// Where there are fewer threads than calls: a call's time runs from when it was issued, as an initiator sees it.
    private let waiting: Mutex<Waiting>
    private let hasQueue: Bool
    /// With a queue, a thread of its own flushes, as an initiator does while other calls go on.
    private let isFlushDue = Atomic<Bool>(false)
    private let haveThreadsEnded = Atomic<Bool>(false)
    // SAFETY: as `threads`.
    private var flusher: pthread_t?
    // SAFETY: written once in init, read in `join` by the only caller.
    private var threads: [pthread_t] = []

    /// Odd while the window is open whose writes are counted apart.
    private let window = Atomic<UInt64>(0)

    func openWindow() { window.add(1, ordering: .sequentiallyConsistent) }
    func closeWindow() { window.add(1, ordering: .sequentiallyConsistent) }

    init(_ load: Load, on subject: any Subject) {
        self.load = load
        self.subject = subject
        let count = load.threads == 0 ? load.depth : min(load.threads, load.depth)
        hasQueue = count < load.depth
        let first = Issued(at: started, window: 0)
        waiting = Mutex(Waiting(calls: Array(repeating: first, count: load.depth), count: load.depth))
        if hasQueue { flusher = startThread { [self] in flushWhenDue() } }
        for index in 0..<count { threads.append(startThread { [self] in work(index) }) }
    }

    func end() { mustEnd.store(true, ordering: .relaxed) }

    /// Waits for the end; the flush that makes everything durable is part of the time.
    func join() -> LoadResult {
        for thread in threads { pthread_join(thread, nil) }
        haveThreadsEnded.store(true, ordering: .relaxed)
        if let flusher { pthread_join(flusher, nil) }
        if load.isWrite { flush() }
        let seconds = Double(nanoseconds() - started) / 1e9
        let sums = results.withLock { $0 }
        return LoadResult(
            calls: sums.calls, seconds: seconds, latency: sums.latency, inWindow: sums.inWindow,
            flushes: flushes.load(ordering: .relaxed), failure: sums.failure)
    }

    private func flush() {
        flushes.add(1, ordering: .relaxed)
        do { try subject.flush() } catch { note(error) }
    }

    private func flushWhenDue() {
        while !haveThreadsEnded.load(ordering: .relaxed) {
            if isFlushDue.exchange(false, ordering: .relaxed) { flush() } else { usleep(50) }
        }
    }

    private func note(_ error: any Error) {
        results.withLock { if $0.failure == nil { $0.failure = "\(error)" } }
        end()
    }

    private func offset(_ number: UInt64, _ generator: inout Generator) -> UInt64 {
        let blocks = load.sizeBytes / UInt64(load.blockBytes)
        switch load.pattern {
        case .random: return generator.next() % blocks * UInt64(load.blockBytes)
        case .sequential: return number % blocks * UInt64(load.blockBytes)
        case .step: return number &* load.stepBytes % load.sizeBytes
        }
    }

    private func now() -> Issued { Issued(at: nanoseconds(), window: window.load(ordering: .sequentiallyConsistent)) }

    private func take() -> Issued {
        guard hasQueue else { return now() }
        return waiting.withLock { waiting in
            defer {
                waiting.first = (waiting.first + 1) % waiting.calls.count
                waiting.count -= 1
            }
            return waiting.calls[waiting.first]
        }
    }

    /// A call has ended; the next one is issued at once.
    private func issue() -> Issued {
        let call = now()
        guard hasQueue else { return call }
        waiting.withLock { waiting in
            waiting.calls[(waiting.first + waiting.count) % waiting.calls.count] = call
            waiting.count += 1
        }
        return call
    }

    private func work(_ thread: Int) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: load.blockBytes, alignment: 4096)
        defer { buffer.deallocate() }
        var generator = Generator(load.seed &* 1000 + UInt64(thread) + 1)
        let words = buffer.bindMemory(to: UInt64.self)
        for index in words.indices { words[index] = generator.next() }
        var latency = Histogram()
        var inWindow = Histogram()
        var calls: UInt64 = 0
        let deadline = started + UInt64(load.seconds * 1e9)
        let base = generator.next()
        while !mustEnd.load(ordering: .relaxed) {
            let (number, _) = issued.add(1, ordering: .relaxed)
            if load.calls > 0 ? number >= load.calls : nanoseconds() >= deadline { break }
            let offset = offset(number, &generator)
            // No two blocks are alike, as a store with deduplication would like them to be.
            for at in stride(from: 0, to: words.count, by: 512) { words[at] = base &+ number &+ UInt64(at) | 1 }
            let call = take()
            do {
                if load.isWrite {
                    try subject.write(at: offset, from: UnsafeRawBufferPointer(buffer))
                } else {
                    try subject.read(at: offset, into: buffer)
                }
            } catch {
                note(error)
                break
            }
            let done = issue()
            latency.add(done.at - call.at)
            if call.window != done.window || call.window % 2 == 1 { inWindow.add(done.at - call.at) }
            calls += 1
            if load.isWrite, load.flushInterval > 0, (number + 1) % load.flushInterval == 0 {
                if hasQueue { isFlushDue.store(true, ordering: .relaxed) } else { flush() }
            }
        }
        results.withLock {
            $0.latency.add(latency)
            $0.inWindow.add(inWindow)
            $0.calls += calls
        }
    }
}

/// Starts a thread that runs `body`.
func startThread(_ body: @escaping @Sendable () -> Void) -> pthread_t {
    final class Box {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    var thread = pthread_t()
    let failure = pthread_create(
        &thread, nil,
        { argument in
            Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
            return nil
        }, Unmanaged.passRetained(Box(body)).toOpaque())
    precondition(failure == 0, "the system gives no more threads")
    return thread
}
