import NIOCore
import NIOTLS
import Synchronization

/// Bounds what connections that have not shown a certificate yet can take away from those that have.
///
/// Each has a few seconds for its handshake; when there are too many, the oldest is closed. An honest handshake takes
/// milliseconds, so it is hardly ever the oldest.
final class HandshakeGate: Sendable {
    let limit: Int
    let timeLimit: TimeAmount

    private struct Waiting {
        var order: [UInt64] = []
        var channels: [UInt64: any Channel] = [:]
        var last: UInt64 = 0
    }

    private let waiting = Mutex(Waiting())

    init(limit: Int = 128, timeLimit: TimeAmount = .seconds(5)) {
        self.limit = limit
        self.timeLimit = timeLimit
    }

    var waitingCount: Int { waiting.withLock { $0.channels.count } }

    func enter(_ channel: any Channel) -> UInt64 {
        let (ticket, victim): (UInt64, (any Channel)?) = waiting.withLock { waiting in
            waiting.last += 1
            waiting.order.append(waiting.last)
            waiting.channels[waiting.last] = channel
            guard waiting.channels.count > limit, let oldest = waiting.order.first else { return (waiting.last, nil) }
            waiting.order.removeFirst()
            return (waiting.last, waiting.channels.removeValue(forKey: oldest))
        }
        victim?.close(promise: nil)
        return ticket
    }

    func leave(_ ticket: UInt64) {
        waiting.withLock { waiting in
            guard waiting.channels.removeValue(forKey: ticket) != nil else { return }
            if let index = waiting.order.firstIndex(of: ticket) { waiting.order.remove(at: index) }
        }
    }
}

/// The gate's part in one connection's pipeline, right after TLS.
final class HandshakeGuard: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = ByteBuffer

    private let gate: HandshakeGate
    private var ticket: UInt64?
    private var timer: Scheduled<Void>?

    init(gate: HandshakeGate) { self.gate = gate }

    func handlerAdded(context: ChannelHandlerContext) {
        ticket = gate.enter(context.channel)
        let channel = context.channel
        timer = context.eventLoop.scheduleTask(in: gate.timeLimit) { channel.close(promise: nil) }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if case .handshakeCompleted? = event as? TLSUserEvent { end() }
        context.fireUserInboundEventTriggered(event)
    }

    func channelInactive(context: ChannelHandlerContext) {
        end()
        context.fireChannelInactive()
    }

    func handlerRemoved(context: ChannelHandlerContext) { end() }

    /// TLS errors, garbage and cuts are the other side's business: the connection ends, and that is all.
    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

    private func end() {
        timer?.cancel()
        timer = nil
        if let ticket { gate.leave(ticket) }
        ticket = nil
    }
}
