/// One saga at a time on a volume: sagas that share a volume run one after another, in the order in which they came.
actor VolumeReservations {
    private struct Waiter {
        var id: Int
        var volumes: Set<String>
        var continuation: CheckedContinuation<Void, any Error>
    }

    private var held: Set<String> = []
    private var waiters: [Waiter] = []
    private var nextID = 0

    var waiterCount: Int { waiters.count }

    init() {}

    /// Returns when none of `volumes` is in another's hands. Throws `CancellationError` when the task is cancelled.
    func acquire(_ volumes: Set<String>) async throws {
        try Task.checkCancellation()
        let overtakes = waiters.contains { !$0.volumes.isDisjoint(with: volumes) }
        if held.isDisjoint(with: volumes), !overtakes {
            held.formUnion(volumes)
            return
        }
        nextID += 1
        let id = nextID
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
                if Task.isCancelled {
                    continuation.resume(throwing: CancellationError())
                    return
                }
                waiters.append(Waiter(id: id, volumes: volumes, continuation: continuation))
            }
        } onCancel: {
            Task { await self.cancel(id) }
        }
    }

    func release(_ volumes: Set<String>) {
        held.subtract(volumes)
        admit()
    }

    private func cancel(_ id: Int) {
        guard let index = waiters.firstIndex(where: { $0.id == id }) else { return }
        waiters.remove(at: index).continuation.resume(throwing: CancellationError())
        admit()
    }

    /// First come, first served for each volume: a waiter is admitted when none of its volumes is held or wanted by
    /// an earlier waiter.
    private func admit() {
        var wanted: Set<String> = []
        var remaining: [Waiter] = []
        for waiter in waiters {
            if held.isDisjoint(with: waiter.volumes), wanted.isDisjoint(with: waiter.volumes) {
                held.formUnion(waiter.volumes)
                waiter.continuation.resume()
            } else {
                wanted.formUnion(waiter.volumes)
                remaining.append(waiter)
            }
        }
        waiters = remaining
    }
}
