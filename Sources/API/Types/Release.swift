/// What this release is called; the node, the agent and the CLI are released together.
public enum Release {
    /// Major, minor and patch number (semver.org).
    public static let version = "0.1.0"
}
