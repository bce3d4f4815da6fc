import API
import ArgumentParser

struct Status: NodeCommand {
    static let configuration = CommandConfiguration(abstract: "The node at a glance.")

    @OptionGroup var connection: ConnectionOptions

    func run(on node: NodeClient) async throws {
        let status = try await node.status()
        if connection.isJSON { return try Output.json(status) }
        var text = Description()
        text.add("Node", "\(status.nodeID), version \(status.version), up \(Show.span(status.uptimeSeconds))")
        text.add("API", status.apiAddress)
        text.add("iSCSI", status.iscsiAddress)
        text.add("Data", status.dataDirectory)
        let pool = status.pool
        text.add("Pool", PoolReport.state(pool.state, pool.failure))
        text.add(
            "Space",
            "\(Show.bytes(pool.usedBytes)) used, \(Show.bytes(pool.freeBytes)) free, "
                + "at most \(Show.bytes(pool.sizeBytes))"
        )
        text.add("Alerts", lines: pool.alerts.isEmpty ? ["none"] : pool.alerts.flatMap(PoolReport.alert))
        text.add("Volumes", "\(status.volumeCount)")
        text.add("Snapshots", "\(status.snapshotCount)")
        text.add("Agents", "\(status.agentCount), \(status.reachableAgentCount) reachable")
        text.add("Jobs", "\(status.runningJobs) running")
        print(text.rendered())
    }
}
