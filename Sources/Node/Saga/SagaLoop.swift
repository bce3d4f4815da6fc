import Protection
import Synchronization

/// Feeds events to a state machine one at a time, in the order in which they come, and wakes it when it asks.
///
/// The loop is not cancelled with the task that waits for it: a saga that is told to stop has things to undo, so
/// cancellation is an event like others.
final class SagaLoop<Event: Sendable>: Sendable {
    private let stream: AsyncStream<Event>
    private let continuation: AsyncStream<Event>.Continuation
    private let clock: any SagaClock
    private let alarm = Mutex<(due: Int64, task: Task<Void, Never>)?>(nil)

    init(clock: any SagaClock) {
        self.clock = clock
        (stream, continuation) = AsyncStream.makeStream(of: Event.self)
    }

    var now: MonotonicInstant { MonotonicInstant(nanoseconds: clock.monotonicNanoseconds()) }

    func send(_ event: Event) { continuation.yield(event) }

    /// Runs `effect` beside the loop; its answer is an event.
    func spawn(_ effect: @escaping @Sendable () async -> Event) {
        Task { send(await effect()) }
    }

    /// Handles events until `handle` says that it is over, with when the machine wants to be woken otherwise.
    func run(timer: Event, handle: (Event) async -> Step) async {
        for await event in stream {
            switch await handle(event) {
            case .ended:
                alarm.withLock { alarm in
                    alarm?.task.cancel()
                    alarm = nil
                }
                continuation.finish()
                return
            case .wakeAt(let instant): setAlarm(instant?.nanoseconds, timer)
            }
        }
    }

    enum Step { case ended, wakeAt(MonotonicInstant?) }

    private func setAlarm(_ due: Int64?, _ timer: Event) {
        alarm.withLock { alarm in
            if alarm?.due == due { return }
            alarm?.task.cancel()
            alarm = nil
            guard let due else { return }
            // A machine that asked for the past would otherwise keep a core busy.
            let wake = max(due, clock.monotonicNanoseconds() + 1_000_000)
            let task = Task {
                guard (try? await clock.sleep(until: wake)) != nil else { return }
                self.alarm.withLock { current in
                    if current?.due == due { current = nil }
                }
                send(timer)
            }
            alarm = (due, task)
        }
    }
}
