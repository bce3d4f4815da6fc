import BlockIO
import NIOCore
import SCSI

@testable import ISCSI

/// A byte stream into a session in its full-feature phase: framing, CmdSN order, data transfer, task management, text.
/// The first byte chooses digests and whether the peer reads.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzSession(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard count > 1 else { return 0 }
    let transport = Sink()
    guard let session = transport.open(options: start[0]) else { return 0 }
    let bytes = UnsafeRawBufferPointer(start: start + 1, count: count - 1)
    // In two parts, as TCP may cut it anywhere.
    let cut = Int(start[0]) * bytes.count / 256
    var used = session.receive(UnsafeRawBufferPointer(rebasing: bytes[..<cut])).used
    session.flush()
    used += session.receive(UnsafeRawBufferPointer(rebasing: bytes[used...])).used
    session.flush()
    transport.runAll()
    session.tick(0)
    session.tearDown()
    precondition(session.outstanding.isEmpty && session.dormant.isEmpty)
    return 0
}

final class Sink: SessionTransport {
    var session: Session?
    var isWritable = true
    private var waiting: [(BlockingOperation, CommandActivity, UInt64)] = []

    func open(options: UInt8) -> Session? {
        let registry = TargetRegistry()
        let iqn = "iqn.2026-11.fuzz:target"
        guard let identity = try? LogicalUnitIdentity(naa: "60000000000000000000000000000001", serial: "1"),
            (try? registry.addTarget(iqn)) != nil,
            (try? registry.addLUN(iqn, lun: 0, device: MemoryDevice(sizeBytes: 1 << 20), identity: identity)) != nil
        else { return nil }
        var parameters = SessionParameters()
        parameters.initialR2T = options & 1 != 0
        parameters.maxOutstandingR2T = 4
        parameters.headerDigest = options & 2 != 0
        parameters.dataDigest = options & 4 != 0
        var limits = TargetLimits()
        limits.receiveSegmentBytes = 65_536
        let outcome = LoginOutcome(
            initiatorPort: InitiatorPort(name: "iqn.2026-11.fuzz:initiator", isid: 1), target: iqn,
            parameters: parameters, connectionID: 0, user: nil, commandSN: 1, statusSN: 1)
        let session = Session(
            outcome: outcome, limits: limits, counters: SessionCounters(),
            directory: TargetDirectory(registry: registry, iqn: iqn),
            localAddress: "192.0.2.1:3260", transport: self)
        self.session = session
        return session
    }

    func send(_ output: inout ByteBuffer) { output.clear() }
    func run(_ operation: BlockingOperation, _ activity: CommandActivity, token: UInt64) {
        waiting.append((operation, activity, token))
    }
    func drainCallback(token: UInt64) -> @Sendable () -> Void {
        // SAFETY: the fuzzer has one thread.
        nonisolated(unsafe) let session = session
        return { session?.drained(token) }
    }
    func close(_ reason: String) {}

    /// Lets each operation have some steps; endless ones would only cost time.
    func runAll() {
        for (operation, activity, token) in waiting.prefix(64) {
            var operation = operation
            for _ in 0..<4 {
                if let end = activity.unit.step(&operation, activity: activity) {
                    session?.blockingFinished(token, end)
                    break
                }
            }
        }
    }
}
