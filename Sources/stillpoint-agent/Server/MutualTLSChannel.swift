import HummingbirdCore
import Logging
import NIOCore
import NIOSSL
import SwiftASN1
import X509

/// HTTP/1.1 behind TLS 1.3, where the handshake succeeds only for this agent's node.
struct MutualTLSChannel: ServerChildChannel {
    typealias Value = HTTP1Channel.Value

    private let base: HTTP1Channel
    private let keeper: IdentityKeeper
    private let gate: HandshakeGate
    private let authority: Certificate
    private let nodeID: String

    init(base: HTTP1Channel, keeper: IdentityKeeper, gate: HandshakeGate = HandshakeGate()) throws {
        self.base = base
        self.gate = gate
        self.keeper = keeper
        // A renewal changes neither.
        authority = try keeper.identity.authority()
        nodeID = keeper.identity.nodeID
    }

    func setup(channel: any Channel, logger: Logger) -> EventLoopFuture<Value> {
        channel.eventLoop.makeCompletedFuture {
            let authority = authority
            let nodeID = nodeID
            let peer = channel.remoteAddress?.description ?? "unknown"
            // Replaces NIOSSL's own verification, so it checks the chain as well as the name.
            let tls = NIOSSLServerHandler(
                context: keeper.context,
                customVerificationCallback: { shown, promise in
                    promise.completeWithTask {
                        do {
                            let chain = try shown.map { try Certificate(derEncoded: $0.toDERBytes()) }
                            try await Certificates.verify(
                                chain: chain, root: authority, name: .node(id: nodeID), usage: .clientAuth)
                            return .certificateVerified
                        } catch {
                            logger.warning("refused a connection", metadata: ["from": "\(peer)", "why": "\(error)"])
                            return .failed
                        }
                    }
                }, configuration: .init())
            try channel.pipeline.syncOperations.addHandler(tls)
            try channel.pipeline.syncOperations.addHandler(HandshakeGuard(gate: gate))
        }.flatMap {
            base.setup(channel: channel, logger: logger)
        }
    }

    func handle(value: Value, logger: Logger) async {
        await base.handle(value: value, logger: logger)
    }
}
