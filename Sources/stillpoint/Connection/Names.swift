import API
import ArgumentParser
import Foundation

/// Tab completion that asks the node for names. It never complains: without a node there is nothing to complete.
enum Names {
    static let volumes = completion { node in try await node.volumes().map(\.name) }
    static let snapshots = completion { node in try await node.snapshots().map(\.name) }
    static let clones = completion { node in try await node.clones().map(\.name) }
    static let targets = completion { node in try await node.targets().map(\.iqn) }
    static let sessions = completion { node in try await node.sessions().map { String($0.id) } }
    static let agents = completion { node in try await node.agents().map(\.name) }
    static let guests = completion { node in try await node.guests().map(\.name) }
    static let jobs = completion { node in try await node.jobs().map(\.id) }
    static let attachable = completion { node in
        async let volumes = node.volumes().map(\.name)
        async let snapshots = node.snapshots().map(\.name)
        return try await volumes + snapshots
    }
    static let attached = CompletionKind.custom { _, _, prefix in
        (try? AttachmentDirectory.standard().records())?.map(\.name).filter { $0.hasPrefix(prefix) } ?? []
    }

    private static func completion(
        _ names: @escaping @Sendable (NodeClient) async throws -> [String]
    ) -> CompletionKind {
        .custom { words, _, prefix in
            guard
                let address = try? NodeLocator().locate(
                    api: option("--api", in: words), tokenFile: option("--token-file", in: words),
                    authorityFile: option("--ca-file", in: words)),
                let node = try? address.connect(timeoutSeconds: 2, connectTimeoutSeconds: 1)
            else { return [] }
            let found = (try? await names(node)) ?? []
            await node.close()
            return found.filter { $0.hasPrefix(prefix) }
        }
    }

    private static func option(_ name: String, in words: [String]) -> String? {
        for (index, word) in words.enumerated() {
            if word == name, index + 1 < words.count { return words[index + 1] }
            if word.hasPrefix(name + "=") { return String(word.dropFirst(name.count + 1)) }
        }
        return nil
    }
}
