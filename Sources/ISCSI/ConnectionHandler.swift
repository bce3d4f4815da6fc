import Logging
import NIOCore
import NIOPosix
import SCSI
import Synchronization

/// Carries bytes between a TCP connection and the login machine, then the session. Everything that decides something
/// is in those two; this is the edge to NIO.
final class ConnectionHandler: ChannelInboundHandler, SessionTransport {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private enum Phase {
        case login(LoginMachine)
        /// Waits for the session that this one replaces to let go of its devices.
        case opening(LoginMachine, LoginOutcome, LiveSession)
        case session(Session, LiveSession)
        case closed
    }

    private let server: ServerContext
    private let portalGroupTag: UInt16
    private var logger: Logger
    private var phase: Phase
    private var context: ChannelHandlerContext?
    /// What has come of a PDU that is not whole, or what waits for a peer that does not read.
    private var pending = ByteBuffer()
    /// Bytes that `pending` must have before it is worth another look.
    private var needed = BasicHeader.byteCount
    private var isReading = true
    private var timer: RepeatedTask?
    private var deadline: Scheduled<Void>?
    /// Sessions that have to end before this one begins.
    private var replacedSessions = 0
    private var replaceCompletions: [@Sendable () -> Void] = []
    private var counters = SessionCounters()
    private var loginFraming: PDUFraming
    private var isInLogin = true
    private var hasEnded = false
    private var poll: SocketPoll?
    private var counts: [SessionCount] = []

    private(set) var isWritable = true

    init(server: ServerContext, portalGroupTag: UInt16, logger: Logger) {
        self.server = server
        self.portalGroupTag = portalGroupTag
        self.logger = logger
        let limits = server.registry.limits
        phase = .login(
            LoginMachine(
                limits: limits, policy: server.registry, portalGroupTag: portalGroupTag, random: SystemRandom.bytes))
        loginFraming = PDUFraming(dataSegmentLimit: limits.textBytes)
    }

    // MARK: NIO

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        deadline = context.eventLoop.scheduleTask(in: .seconds(server.registry.limits.loginSeconds)) {
            bound.value.loginTimedOut()
        }
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
        if !hasEnded { ended() }
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var incoming = unwrapInboundIn(data)
        if pending.readableBytes == 0 { consume(&incoming) }
        while incoming.readableBytes > 0 {
            // Only the PDU that was cut is put together; those behind it are handled where they are.
            let missing = isReading ? max(needed - pending.readableBytes, 1) : incoming.readableBytes
            if var part = incoming.readSlice(length: min(missing, incoming.readableBytes)) {
                pending.writeBuffer(&part)
            }
            guard isReading, pending.readableBytes >= needed else { continue }
            consumePending()
            if pending.readableBytes == 0 { consume(&incoming) }
        }
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        guard case .session(let session, _) = phase else { return }
        if let poll { receiveMore(session, poll, context.channel) }
        session.flush()
    }

    /// Goes on with what the peer has sent meanwhile, or is about to send. Answers wait as long as there is more, so
    /// that many go out at once.
    private func receiveMore(_ session: Session, _ poll: SocketPoll, _ channel: any Channel) {
        for reception in 1...SocketPoll.receptionsPerTurn {
            guard mayReceive(session, channel) else { return }
            var hasMore = false
            if pending.readableBytes > 0 {
                hasMore = poll.receive(into: &pending, within: SocketPoll.restOfPDUNanoseconds)
            } else if !session.isInStep {
                hasMore = poll.receive(
                    into: &pending, within: session.isInitiatorBehind ? SocketPoll.behindNanoseconds : 0)
            }
            if !hasMore || reception % SocketPoll.receptionsPerFlush == 0 { session.flush() }
            if !hasMore {
                guard pending.readableBytes == 0, session.isInStep, mayReceive(session, channel) else { return }
                guard poll.receive(into: &pending, within: SocketPoll.nextCommandNanoseconds) else {
                    session.fellOutOfStep()
                    return
                }
            }
            if pending.readableBytes >= needed { consumePending() }
        }
    }

    private func mayReceive(_ session: Session, _ channel: any Channel) -> Bool {
        channel.isActive && isReading && isWritable && !session.isClosing
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        isWritable = context.channel.isWritable
        guard isWritable else { return }
        // Not at once: this may be called from the middle of what the session sends.
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        context.eventLoop.execute { bound.value.resume() }
    }

    func channelInactive(context: ChannelHandlerContext) {
        ended()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        // A reset connection is the peer's way to go; the log line is written where the connection ends.
        context.close(promise: nil)
    }

    // MARK: Input

    /// Handles what is in `pending`. It is taken out meanwhile: with the last PDU of a login the session begins, which
    /// looks there for what came behind it.
    private func consumePending() {
        var buffer = ByteBuffer()
        swap(&buffer, &pending)
        consume(&buffer)
        if buffer.readableBytes == 0 { buffer.clear() }
        if pending.readableBytes == 0 { pending = buffer } else { pending.writeBuffer(&buffer) }
    }

    private func consume(_ buffer: inout ByteBuffer) {
        while buffer.readableBytes > 0 {
            switch phase {
            case .login:
                guard consumeLogin(&buffer) else { return }
            case .session(let session, _):
                let result = buffer.withUnsafeReadableBytes { session.receive($0) }
                buffer.moveReaderIndex(forwardBy: result.used)
                needed = result.needed
                if !isWritable { setReading(false) }
                return
            case .opening: return
            case .closed:
                buffer.clear()
                return
            }
        }
    }

    /// - Returns: whether there may be more to do with what is left.
    private func consumeLogin(_ buffer: inout ByteBuffer) -> Bool {
        guard case .login(var machine) = phase else { return false }
        switch buffer.withUnsafeReadableBytes({ loginFraming.next($0) }) {
        case .needs(let count):
            needed = count
            return false
        case .failed(let error):
            refused(LoginFailure(status: .initiatorError, message: "it sent no iSCSI login (\(error))"), machine)
            close("no login")
            return false
        case .frame(let frame):
            let start = buffer.readerIndex
            let data = buffer.getBytes(at: start + frame.data.lowerBound, length: frame.data.count) ?? []
            buffer.moveReaderIndex(forwardBy: frame.byteCount)
            needed = BasicHeader.byteCount
            let step = machine.receive(frame.header, data)
            phase = .login(machine)
            perform(step, machine)
            return true
        }
    }

    private func perform(_ step: LoginMachine.Step, _ machine: LoginMachine) {
        switch step {
        case .respond(let header, let text): write(header, text)
        case .open(let outcome): open(outcome, machine)
        case .fail(let header, let failure):
            write(header, [])
            refused(failure, machine)
            close("its login was refused")
        case .drop(let failure):
            refused(failure, machine)
            close("no login")
        }
    }

    private func refused(_ failure: LoginFailure, _ machine: LoginMachine) {
        server.registry.loginRefused(target: machine.wantedTarget)
        logger.warning("iSCSI login from \(Self.text(context?.remoteAddress)) refused: \(failure.message)")
    }

    // MARK: From login to session

    private func open(_ outcome: LoginOutcome, _ machine: LoginMachine) {
        guard let context else { return }
        let result = server.registry.open(
            outcome, address: Self.text(context.remoteAddress), counters: counters, control: control(context))
        switch result {
        case .failure(let failure):
            var machine = machine
            perform(machine.refuse(failure), machine)
        case .success(let (session, replaced)):
            phase = .opening(machine, outcome, session)
            guard !replaced.isEmpty else {
                opened()
                return
            }
            replacedSessions = replaced.count
            // What it sends before it is answered stays in the socket.
            setReading(false)
            logger.info("iSCSI session of \(session.initiatorPort.name) on \(session.iqn) is being replaced")
            let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
            let loop = context.eventLoop
            for old in replaced { old.control.replace { loop.execute { bound.value.replacedOne() } } }
        }
    }

    private func replacedOne() {
        replacedSessions -= 1
        if replacedSessions == 0 { opened() }
    }

    private func opened() {
        guard case .opening(var machine, let outcome, let live) = phase, let context else { return }
        leftLogin()
        let (header, text) = machine.accept(tsih: live.tsih)
        write(header, text)
        let directory = TargetDirectory(
            registry: server.registry, iqn: live.iqn, portalGroupTag: portalGroupTag, portals: server.portals)
        let session = Session(
            outcome: outcome, limits: server.registry.limits, counters: counters, directory: directory,
            localAddress: Self.text(context.localAddress), transport: self)
        phase = .session(session, live)
        let onLoop = server.sessions(on: context.eventLoop)
        counts = [onLoop, server.sessionCount]
        for count in counts { count.value.add(1, ordering: .relaxed) }
        poll = SocketPoll(context.channel, onLoop: onLoop, onServer: server.sessionCount)
        setReading(true)
        let what = live.iqn.isEmpty ? "for discovery" : "to \(live.iqn)"
        let how = outcome.user.map { " as CHAP user \($0)" } ?? ""
        logger.info("iSCSI initiator \(live.initiatorPort.name) logged in \(what)\(how) from \(live.address)")
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        timer = context.eventLoop.scheduleRepeatedTask(initialDelay: .seconds(1), delay: .seconds(1)) { _ in
            bound.value.tick()
        }
        consumePending()
        session.flush()
    }

    private func control(_ context: ChannelHandlerContext) -> SessionControl {
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        let loop = context.eventLoop
        return SessionControl(
            drop: { reason in loop.execute { bound.value.drop(reason) } },
            requestLogout: { seconds in
                loop.execute {
                    if case .session(let session, _) = bound.value.phase { session.requestLogout(seconds: seconds) }
                }
            },
            replace: { completion in
                loop.execute { bound.value.replace(completion) }
            })
    }

    private func replace(_ completion: @escaping @Sendable () -> Void) {
        replaceCompletions.append(completion)
        if !hasEnded {
            close("the initiator opened it anew, or the target shuts down")
        } else if case .session(let session, let live) = phase {
            released(session, live)
        } else {
            complete()
        }
    }

    private func leftLogin() {
        deadline?.cancel()
        guard isInLogin else { return }
        isInLogin = false
        server.connectionLeftLogin()
    }

    private func loginTimedOut() {
        guard isInLogin else { return }
        logger.warning("iSCSI login from \(Self.text(context?.remoteAddress)) took too long")
        close("its login took too long")
    }

    private func drop(_ reason: String) {
        if case .session(let session, _) = phase { session.announceDrop(reason) } else { close(reason) }
    }

    private func tick() {
        if case .session(let session, _) = phase {
            session.tick(Int64(NIODeadline.now().uptimeNanoseconds / 1_000_000_000))
        }
    }

    // MARK: The end

    private func ended() {
        guard !hasEnded else { return }
        hasEnded = true
        leftLogin()
        timer?.cancel()
        for count in counts { count.value.subtract(1, ordering: .relaxed) }
        switch phase {
        case .session(let session, let live):
            session.tearDown()
            logger.info("iSCSI session of \(live.initiatorPort.name) \(live.iqn) ended")
            // Operations that still run keep the session until they are done.
            released(session, live)
        case .opening(_, _, let live):
            server.registry.closed(live)
            phase = .closed
            complete()
        case .login, .closed:
            phase = .closed
            complete()
        }
    }

    /// Takes the session off the list and calls back those who wait for its operations, when there are none.
    private func released(_ session: Session, _ live: LiveSession) {
        guard session.running.isEmpty else { return }
        server.registry.closed(live)
        phase = .closed
        complete()
    }

    private func complete() {
        for completion in replaceCompletions { completion() }
        replaceCompletions = []
    }

    // MARK: SessionTransport

    func send(_ output: inout ByteBuffer) {
        context?.writeAndFlush(wrapOutboundOut(output), promise: nil)
        output.clear()
    }

    func run(_ operation: BlockingOperation, _ activity: CommandActivity, token: UInt64) {
        guard let context else { return }
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        let loop = context.eventLoop
        server.run(operation, activity) { end in
            loop.execute { bound.value.finished(token, end) }
        }
    }

    private func finished(_ token: UInt64, _ end: CommandEnd) {
        guard case .session(let session, let live) = phase else { return }
        session.blockingFinished(token, end)
        if hasEnded { released(session, live) }
    }

    func drainCallback(token: UInt64) -> @Sendable () -> Void {
        guard let context else { return {} }
        let bound = NIOLoopBound(self, eventLoop: context.eventLoop)
        let loop = context.eventLoop
        return {
            loop.execute {
                if case .session(let session, _) = bound.value.phase { session.drained(token) }
            }
        }
    }

    func close(_ reason: String) {
        logger.debug("iSCSI connection closes: \(reason)")
        if let context {
            context.close(promise: nil)
        } else {
            ended()
        }
    }

    // MARK: Flow

    /// The peer reads again: what waited is sent, then what it said meanwhile is heard.
    private func resume() {
        guard case .session(let session, _) = phase else { return }
        session.flush()
        guard isWritable, !isReading else { return }
        setReading(true)
        if pending.readableBytes >= needed { consumePending() }
        session.flush()
    }

    private func setReading(_ reads: Bool) {
        guard reads != isReading else { return }
        isReading = reads
        _ = context?.channel.setOption(.autoRead, value: reads)
    }

    private func write(_ header: BasicHeader, _ text: [UInt8]) {
        guard let context else { return }
        var buffer = context.channel.allocator.buffer(capacity: BasicHeader.byteCount + paddedLength(text.count))
        header.write(to: &buffer)
        buffer.writeBytes(text)
        buffer.writeRepeatingByte(0, count: paddedLength(text.count) - text.count)
        context.writeAndFlush(wrapOutboundOut(buffer), promise: nil)
    }

    /// `address:port`, with brackets around an IPv6 address.
    private static func text(_ address: SocketAddress?) -> String {
        guard let address, let host = address.ipAddress, let port = address.port else { return "unknown" }
        return host.utf8.contains(UInt8(ascii: ":")) ? "[\(host)]:\(port)" : "\(host):\(port)"
    }
}

/// The operating system's random numbers.
enum SystemRandom {
    static let bytes: @Sendable (Int) -> [UInt8] = { count in
        var generator = SystemRandomNumberGenerator()
        return (0..<count).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
    }
}
