import Glibc

/// Work that blocks gets a thread of its own: the pool that runs Swift's tasks has one thread for each core, and a
/// freeze that takes long must not keep a lease from ending.
public enum OwnThread {
    /// Runs `work` on a new thread and waits for it without blocking the caller's.
    public static func run<Value: Sendable>(_ work: @escaping @Sendable () -> Value) async -> Value {
        await withCheckedContinuation { continuation in
            start { continuation.resume(returning: work()) }
        }
    }

    /// Like `run`, for work that can fail.
    public static func run<Value: Sendable>(
        _ work: @escaping @Sendable () throws(PluginFailure) -> Value
    ) async throws(PluginFailure) -> Value {
        let result: Result<Value, PluginFailure> = await run { () -> Result<Value, PluginFailure> in
            do throws(PluginFailure) {
                return .success(try work())
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// Runs `work` on a new thread. A machine that cannot start one has nothing left to do the work with: it runs here.
    public static func start(_ work: @escaping @Sendable () -> Void) {
        final class Box: Sendable {
            let work: @Sendable () -> Void
            init(_ work: @escaping @Sendable () -> Void) { self.work = work }
        }
        // SAFETY: the new thread takes over the one reference that is passed here.
        let box = Unmanaged.passRetained(Box(work))
        var thread = pthread_t()
        let code = pthread_create(
            &thread, nil,
            { argument in
                Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().work()
                return nil
            }, box.toOpaque())
        if code == 0 {
            pthread_detach(thread)
        } else {
            box.takeRetainedValue().work()
        }
    }
}
