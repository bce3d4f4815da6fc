import NIOPosix

/// Runs calls that block their thread (the pool's) on threads of their own, never on an event loop or a thread of
/// Swift's cooperative pool.
struct BlockingCalls: Sendable {
    private let threads: NIOThreadPool

    init(_ threads: NIOThreadPool) { self.threads = threads }

    func run<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
        try await threads.runIfActive(body)
    }
}
